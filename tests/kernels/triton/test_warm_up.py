"""What loading says of kernels that are compiled meanwhile, and how that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.kernels.triton.interpreter import CPU
from tests.runtime.helpers import GOLDEN
from xverse_kernels.triton import attention, compiling, experts, linear, parts, sampling
from xverse_kernels.triton.launch import Launcher
from xverse_kernels.triton.versions import Version
from xverse_runtime import engine_parts, warm_up
from xverse_runtime.config import EngineConfig
from xverse_runtime.engine import Engine
from xverse_runtime.kernel_versions import Usage
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.types import LoadProgress
from xverse_runtime.warm_up import WarmUp
from xverse_runtime.weights import ModelWeights


class Compiled:
    """Stands for a compiled kernel; one that is ``broken`` does not fit on the device."""

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    @property
    def run(self) -> object:
        if self._broken:
            raise RuntimeError("out of resource: shared memory")
        return self

    def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_args: None


class FakeCompilation:
    """One kernel more each time somebody waits."""

    last: FakeCompilation
    missing: int = 0

    def __init__(self, versions: Sequence[Version], find_target: Callable[[], Any]) -> None:
        type(self).last = self
        self.versions, self.total, self.done, self.closed = versions, self.missing, 0, False
        self.compiled = {one: Compiled(one.kernel == "draw_kernel") for one in versions}
        self.compiled.pop(next(one for one in versions if one.kernel == "candidates_kernel"))

    def wait(self, _seconds: float) -> bool:
        self.done = min(self.done + 1, self.total)
        return self.done == self.total

    def close(self) -> None:
        self.closed = True


Load = Callable[[Callable[[LoadProgress], None]], Engine]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """An engine on the CPU, loaded as on a GPU as far as kernels go."""
    monkeypatch.setattr(compiling, "Compilation", FakeCompilation)
    monkeypatch.setattr(FakeCompilation, "missing", 3)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    real = engine_parts.load_weights
    begun: list[WarmUp] = []
    make = WarmUp.__init__

    def remember(self: WarmUp, *args: Any) -> None:
        make(self, *args)
        begun.append(self)

    def load_with(*args: Any, **options: Any) -> Any:
        def opened(weights: Callable[[], ModelWeights], cache: torch.dtype) -> None:
            begun[-1].begin(args[1], weights, Usage(cache, args[4], 2048))

        return real(*args, **{**options, "on_opened": opened})

    monkeypatch.setattr(WarmUp, "__init__", remember)
    monkeypatch.setattr(engine_parts, "load_weights", load_with)
    config = EngineConfig(device="cpu", backend="triton")

    def run(progress: Callable[[LoadProgress], None]) -> Engine:
        return Engine.load(GOLDEN / "moe-gqa", config, progress=progress)

    yield run
    for launcher in launchers():
        launcher._compiled.clear()


def launchers() -> list[Launcher]:
    modules = (attention, experts, linear, parts, sampling)
    return [one for module in modules for one in vars(module).values() if isinstance(one, Launcher)]


def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The compiled kernels that launchers find from now on."""
    found: list[Any] = []
    monkeypatch.setattr(Launcher, "keep", lambda _self, _key, one: found.append(one))
    return found


def test_progress_goes_on_until_the_last_kernel(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[LoadProgress] = []
    found = kept(monkeypatch)
    load(told.append)
    total = told[-1].total_bytes
    done = [one.done_bytes for one in told]  # on a busy machine all of it at the first look
    assert done == sorted(done)
    assert {one.total_kernels for one in told} == {3}
    assert told[-2:] == [LoadProgress(total, total, 2, 3), LoadProgress(total, total, 3, 3)]
    compilation = FakeCompilation.last
    assert compilation.closed
    # one was not compiled, and one cannot be loaded: their launches will say so
    assert len(found) == len(compilation.versions) - 2


def test_kernels_that_are_there_are_not_spoken_of(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCompilation, "missing", 0)
    told: list[LoadProgress] = []
    found = kept(monkeypatch)
    load(told.append)
    assert {one.total_kernels for one in told} == {0}
    assert found


def test_ctrl_c_ends_it_while_weights_load_and_after(load: Load) -> None:
    for at in (0, 2):

        def interrupt(progress: LoadProgress, at: int = at) -> None:
            if progress.done_kernels == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load(interrupt)
        assert FakeCompilation.last.closed


def test_a_list_that_cannot_be_made_stops_no_model(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise NotImplementedError("an operation of torch that knows no shapes")

    monkeypatch.setattr(warm_up, "kernel_versions", fail)
    told: list[LoadProgress] = []
    load(told.append)
    assert told[-1].total_kernels == 0


def test_launchers_find_what_was_compiled(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load(lambda _progress: None)._decoder
    pool = KVPool(decoder.config, 512, torch.float32, CPU)

    def compiles(*_: Any) -> Any:
        raise AssertionError("a launcher did not find its version")

    monkeypatch.setattr(Launcher, "version", compiles)
    where = torch.zeros(1, dtype=torch.int32)
    for tokens in (1, 5, 40):
        decoder.forward([3] * tokens, KVCache(pool))
    for longest in (200, 300, 500):
        logits = decoder.step(where.long(), pool, where, where, longest)
    with pytest.raises(AssertionError, match="did not find"):  # those two were left out
        decoder.kernels.sampler(1, logits.shape[1])(logits)
