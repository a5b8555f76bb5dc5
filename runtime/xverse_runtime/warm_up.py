"""Kernels compiled while weights load, so that the first prompt finds them ready."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from xverse_runtime.config import ModelConfig
from xverse_runtime.kernel_versions import Usage, kernel_versions
from xverse_runtime.types import LoadProgress, ProgressCallback
from xverse_runtime.weights import ModelWeights

if TYPE_CHECKING:
    from xverse_kernels.triton.compiling import Compilation
    from xverse_kernels.triton.launch import Place
    from xverse_kernels.triton.versions import Version

TELL_EVERY_S = 0.1


class WarmUp:
    """A context: what is under way ends with it. Without `begin` it does nothing."""

    def __init__(self, device: torch.device, progress: ProgressCallback) -> None:
        """``progress``: see `tell`."""
        self._device = device
        self._progress = progress
        self._told = LoadProgress(0, 0)
        self._places: dict[Version, Place] = {}
        self._compilation: Compilation | None = None

    def begin(self, config: ModelConfig, weights: Callable[[], ModelWeights], usage: Usage) -> None:
        """Look for what `kernel_versions` lists in Triton's cache, and compile what is not there:
        in a thread and in processes.

        Args:
            config: the model's.
            weights: gives them without data, in the form that kernels read.
            usage: of the model.
        """
        from xverse_kernels.triton.compiling import Compilation
        from xverse_kernels.triton.launch import device_abilities

        abilities = device_abilities(self._device)
        with suppress(Exception):  # launches compile what they need, one after the other
            self._places = kernel_versions(config, weights(), usage, abilities)
            self._compilation = Compilation(list(self._places), self._target)

    def tell(self, progress: LoadProgress) -> None:
        """Pass on how far the weights are, and how far the kernels."""
        self._told = progress
        compilation = self._compilation
        if compilation is not None and compilation.total:
            done, total = compilation.done, compilation.total
            progress = replace(progress, done_kernels=done, total_kernels=total)
        self._progress(progress)

    def finish(self) -> None:
        """Wait for the kernels, which may take longer than the weights, and load them.

        Raises:
            BaseException: whatever is raised where it tells how far it is.
        """
        compilation = self._compilation
        if compilation is None:
            return
        while not compilation.wait(TELL_EVERY_S):
            self.tell(self._told)
        if compilation.total:
            self.tell(self._told)
        with torch.cuda.device(self._device):
            for version, compiled in compilation.compiled.items():
                # what cannot be loaded is told by its launch, if there ever is one
                with suppress(Exception):
                    self._places[version].fill(self._device, compiled)

    def _target(self) -> Any:
        from triton.runtime import driver

        with torch.cuda.device(self._device):  # every thread has its own
            return driver.active.get_current_target()

    def __enter__(self) -> WarmUp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._compilation is not None:
            self._compilation.close()
