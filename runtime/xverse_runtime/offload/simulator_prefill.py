"""A prompt with some of the experts on the GPU: the others are streamed, layer after layer.

Two buffers take turns: while the experts of one are computed, the next ones cross into the other,
also those of the next layer. What the GPU has is not fetched again, and keeps its slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xverse_runtime.offload.policy import Key
from xverse_runtime.offload.simulator_clock import Process, Signal
from xverse_runtime.offload.simulator_hardware import Copy, Hardware
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_report import PromptReport
from xverse_runtime.offload.trace import RoutedToken
from xverse_runtime.prediction import Placement

BUFFERS = 2


@dataclass(frozen=True)
class PromptWork:
    """What a prompt computes and reads.

    Args:
        layers, top_k: of the model.
        block: bytes of a routed expert.
        before: bytes of a layer that every piece reads: attention, router, shared experts.
        head: bytes, once a piece.
        before_flops: of a token and layer: attention and shared experts.
        expert_flops: of a token in one expert.
        piece: most tokens computed at once.
        buffer: experts that one of the two buffers holds.
    """

    layers: int
    top_k: int
    block: int
    before: int
    head: int
    before_flops: float
    expert_flops: float
    piece: int
    buffer: int

    @classmethod
    def of(cls, placement: Placement) -> PromptWork:
        """Of a plan."""
        sizes, config = placement.sizes, placement.sizes.config
        expert_flops = 2 * 3 * config.hidden_size * config.intermediate_size
        layer_flops = sizes.flops_per_token / config.num_layers
        return cls(
            layers=config.num_layers,
            top_k=config.top_k,
            block=sizes.block,
            before=sizes.layer,
            head=sizes.head,
            before_flops=layer_flops - config.top_k * expert_flops,
            expert_flops=expert_flops,
            piece=placement.prefill_chunk,
            buffer=max(1, placement.staging // BUFFERS // sizes.block),
        )


class PromptSimulation:
    """One prompt on one machine."""

    def __init__(
        self,
        work: PromptWork,
        hardware: Hardware,
        host: HostExperts,
        is_resident: Callable[[Key], bool],
    ) -> None:
        """
        Args:
            work: of the model.
            hardware: idle.
            host: where the experts lie on the host.
            is_resident: whether the GPU has an expert.
        """
        self._work = work
        self._hardware = hardware
        self._host = host
        self._is_resident = is_resident

    def run(self, tokens: Sequence[RoutedToken]) -> PromptReport:
        """Compute a prompt."""
        hardware, clock, piece = self._hardware, self._hardware.clock, self._work.piece
        pieces = [tokens[start : start + piece] for start in range(0, len(tokens), piece)]
        began, before, moved = clock.now, hardware.busy(), hardware.link.moved
        hardware.waits.clear()
        for part in pieces:
            clock.run_until(clock.start(self._piece(part)))
        busy = {name: seconds - before[name] for name, seconds in hardware.busy().items()}
        copied = hardware.link.moved - moved
        return PromptReport(len(tokens), clock.now - began, copied, busy, dict(hardware.waits))

    def _piece(self, tokens: Sequence[RoutedToken]) -> Process:
        work, machine = self._work, self._hardware.machine
        uses = [self._uses(layer, tokens) for layer in range(work.layers)]
        stream = _Stream(self._hardware, self._host, work, self._batches(uses))
        self._hardware.clock.start(stream.copies())
        waited_for = "host"
        for layer in range(work.layers):
            before = self._seconds(len(tokens) * work.before_flops, work.before)
            yield self._hardware.gpu.run(before, f"attention {layer}", waited_for)
            here = [expert for expert in uses[layer] if self._is_resident((layer, expert))]
            if here:
                yield self._hardware.gpu.run(self._experts(uses[layer], here), f"experts {layer}")
            for number, batch in stream.of_layer(layer):
                yield stream.arrived[number]
                seconds = self._experts(uses[layer], [expert for _, expert in batch])
                yield self._hardware.gpu.run(seconds, f"streamed {layer}", stream.cause[number])
                stream.freed[number].happen()
            waited_for = ""
        yield self._hardware.gpu.run(work.head / machine.vram_bandwidth, "head")

    def _uses(self, layer: int, tokens: Sequence[RoutedToken]) -> Counter[int]:
        """How many tokens go to each expert."""
        top_k = self._work.top_k
        return Counter(expert for token in tokens for expert in token.experts[layer][:top_k])

    def _batches(self, uses: Sequence[Counter[int]]) -> list[list[Key]]:
        """What is streamed, a buffer at a time; never of two layers at once."""
        batches = []
        for layer, of_layer in enumerate(uses):
            keys = [(layer, one) for one in sorted(of_layer) if not self._is_resident((layer, one))]
            size = self._work.buffer
            batches += [keys[start : start + size] for start in range(0, len(keys), size)]
        return batches

    def _seconds(self, flops: float, nbytes: float) -> float:
        """Computing or reading, whichever takes longer."""
        machine = self._hardware.machine
        return max(flops / machine.gpu_flops, nbytes / machine.vram_bandwidth)

    def _experts(self, uses: Counter[int], experts: Sequence[int]) -> float:
        flops = sum(uses[expert] for expert in experts) * self._work.expert_flops
        return self._seconds(flops, len(experts) * self._work.block)


class _Stream:
    """Batches of experts on their way, each into the buffer that was freed two before."""

    def __init__(
        self, hardware: Hardware, host: HostExperts, work: PromptWork, batches: list[list[Key]]
    ) -> None:
        self._hardware = hardware
        self._host = host
        self._work = work
        self._batches = batches
        self.arrived = [Signal() for _ in batches]
        self.freed = [Signal() for _ in batches]
        self.cause = ["link"] * len(batches)

    def of_layer(self, layer: int) -> list[tuple[int, list[Key]]]:
        """The batches of a layer, with their numbers."""
        return [(n, batch) for n, batch in enumerate(self._batches) if batch[0][0] == layer]

    def copies(self) -> Process:
        for number, batch in enumerate(self._batches):
            if number >= BUFFERS:
                yield self.freed[number - BUFFERS]
            machine, block = self._hardware.machine, self._work.block
            absent = sum(self._host.touch(key) for key in batch) * block
            if absent:
                self.cause[number] = "disk"
                what = f"layer {batch[0][0]}"
                yield self._hardware.disk.run(absent / machine.disk_bandwidth, what)
            traffic = sum(self._host.traffic(key) for key in batch) / len(batch)
            size = len(batch) * block
            what = f"{len(batch)} experts of layer {batch[0][0]}"
            copy = Copy(size, what, self.arrived[number], machine.copy_latency, traffic)
            self._hardware.link.copy_now([copy])
            yield copy.arrived
