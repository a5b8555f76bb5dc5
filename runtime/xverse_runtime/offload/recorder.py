"""Records what the routers of a running model choose."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from xverse_runtime.config import ModelConfig
from xverse_runtime.offload.trace import RoutedPass, RoutedToken, TraceHeader
from xverse_runtime.offload.trace_file import TraceWriter

RUNNERS_UP = 6  # experts that are listed beyond the chosen ones


class RoutingRecorder:
    """A `RouterObserver` that writes a trace: a pass is in the file once its last layer was seen.

    A pass that is broken off leaves nothing.
    """

    def __init__(
        self, path: Path, config: ModelConfig, model: str, *, runners_up: int = RUNNERS_UP
    ) -> None:
        """Begin a file.

        Args:
            path: the file, overwritten.
            config: of the model that is observed, which must have experts.
            model: its name, for the header.
            runners_up: how many experts to list beyond the chosen ones, as far as there are any.

        Raises:
            UsageError: ``trace.unwritable``, ``trace.shape``.
        """
        listed = min(config.top_k + runners_up, config.num_experts)
        header = TraceHeader(
            model, config.num_layers, config.num_experts, config.top_k, listed, True
        )
        self._writer = TraceWriter(path, header)
        self._seen: list[tuple[list[list[int]], list[list[float]]]] = []  # of each layer so far

    def __call__(self, layer: int, logits: Tensor) -> None:
        """See `RouterObserver`.

        Raises:
            ResourceError: ``trace.disk``.
        """
        header = self._writer.header
        if layer == 0:
            self._seen.clear()
        assert layer == len(self._seen)
        # Logits that are no numbers end the run later on, with an error that says so.
        probabilities = logits.float().softmax(-1).nan_to_num(0.0)
        highest = probabilities.topk(header.listed, dim=-1)
        self._seen.append((highest.indices.tolist(), highest.values.tolist()))
        if layer == header.layers - 1:
            tokens = (self._token(place) for place in range(len(logits)))
            self._writer.write(RoutedPass(tuple(tokens)))
            self._seen.clear()

    def close(self) -> None:
        """The file is complete."""
        self._writer.close()

    def _token(self, place: int) -> RoutedToken:
        return RoutedToken(
            tuple(tuple(experts[place]) for experts, _ in self._seen),
            tuple(tuple(probabilities[place]) for _, probabilities in self._seen),
        )
