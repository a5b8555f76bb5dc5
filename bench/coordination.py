"""What expert offload costs the host beside kernels and copies: a layer, without a GPU.

    python -m bench.coordination [--slots 20] [--rounds 6]

The runtime's own classes run one token after the other in the true shape, with routing by the
calibrated generator: in turns without and with guesses at the next layer, of which half are right.
Kernels do nothing, and copies take as long as on eight lanes of PCIe 4.0 but move nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from bench.table import Report
from xverse_kernels.packing import INT4, ExpertBlocks, ExpertLayout
from xverse_kernels.types import RoutedTokens
from xverse_runtime.offload.coordinator import Coordinator
from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.host_experts import HostExperts
from xverse_runtime.offload.modes import ModeChooser
from xverse_runtime.offload.offloaded_experts import RUNNERS_UP, ExpertOffload
from xverse_runtime.offload.policy import ScoreWindow
from xverse_runtime.offload.scheduler import MissScheduler
from xverse_runtime.offload.synthetic_guesses import CAREFUL, SyntheticGuesses
from xverse_runtime.offload.synthetic_routing import SyntheticRouting
from xverse_runtime.offload.transfer import BlockCopy, SmallCopies

LAYERS, EXPERTS, SHARED, TOP_K, HIDDEN = 28, 64, 2, 6, 2560
BLOCK = 7_467_008  # bytes of a real expert in int4; those here are small, and never read
WIDTH = 32
LINK, HOST = 12.5e9, 35e9
WARM, TOKENS = 200, 100
LAYER_S = 0.9e-3  # that the rest of a layer takes: uploads get on meanwhile
PARTS = ("send the choice", "tables", "misses", "afterwards")


class _Copy:
    """Under way for as long as its bytes take."""

    def __init__(self, clock: _Clock, nbytes: int) -> None:
        self._clock = clock
        self.nbytes = nbytes
        self._seconds = nbytes / LINK
        self._done_at = clock.now + self._seconds

    def is_done(self) -> bool:
        return self._clock.now >= self._done_at

    def seconds(self) -> float:
        return self._seconds

    def wait(self, awaited: object = None) -> None:
        self._clock.now = max(self._clock.now, self._done_at)


class _Clock:
    now = 0.0


class _Passed:
    def wait(self, awaited: object = None) -> None:
        pass


class _Device:
    """An `OffloadDevice` that moves only what the host reads."""

    device = torch.device("cpu")
    checks = False

    def __init__(self) -> None:
        self.clock = _Clock()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    host_buffer = empty

    def pin(self, blocks: Tensor) -> bool:
        return True

    reads_in_place = True

    def to_host(self, copies: SmallCopies) -> None:
        for source, target in copies:
            target.copy_(source)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> _Passed:
        return _Passed()

    def reading(self, rows: Iterable[int]) -> None:
        pass

    def reading_in_place(self, buffer: Tensor) -> None:
        pass

    def upload(self, pool: Tensor, copies: Sequence[BlockCopy], *, after: object = None) -> _Copy:
        return _Copy(self.clock, BLOCK * len(copies))

    def compute_after(self, upload: object) -> None:
        pass

    def close(self) -> None:
        pass


class _Kernels:
    def expert_parts(self, routed: RoutedTokens, experts: ExpertBlocks, out: Tensor) -> None:
        pass


def make_offload(device: _Device, slots: int) -> ExpertOffload:
    layout = ExpertLayout(HIDDEN, WIDTH, INT4)
    blocks = torch.zeros(EXPERTS + SHARED, layout.block_bytes, dtype=torch.uint8)
    host = HostExperts([ExpertBlocks(blocks, layout, torch.float32)] * LAYERS, EXPERTS)
    book = ExpertSlots(LAYERS, EXPERTS, slots * LAYERS, ScoreWindow.for_model(LAYERS, TOP_K))
    cache = ExpertCache(device, host, book, staged=17, shared=SHARED, dtype=torch.float32)
    cache.load((layer, expert) for expert in range(EXPERTS) for layer in range(LAYERS))
    host.pin(device, 2**50, in_place=True)
    scheduler = MissScheduler(BLOCK, LinearCost(1e-5, HOST), LinearCost(1e-5, LINK))
    rules = Coordinator(book, scheduler, most_now=17)
    kernels: Any = _Kernels()
    return ExpertOffload(
        cache, rules, kernels, kernels, top_k=TOP_K, most_few=64, modes=ModeChooser()
    )


def routed_layers(seed: int) -> list[list[RoutedTokens]]:
    """Of every token what each layer's router would give."""
    x, weights = torch.zeros(1, HIDDEN), torch.ones(1, TOP_K + SHARED)
    shared = list(range(EXPERTS, EXPERTS + SHARED))
    tokens = []
    for token in SyntheticRouting(seed=seed).text(0, WARM + TOKENS, listed=TOP_K + RUNNERS_UP):
        assert token.probabilities is not None
        layers = []
        for experts, likely in zip(token.experts, token.probabilities, strict=True):
            logits = torch.full((1, EXPERTS), -20.0)
            logits[0, list(experts)] = torch.tensor(likely).clamp(min=1e-9).log()
            ids = torch.tensor([[*experts[:TOP_K], *shared]], dtype=torch.int32)
            layers.append(RoutedTokens(x, weights, ids, logits))
        tokens.append(layers)
    return tokens


def guessed_ids(right: SyntheticGuesses, following: RoutedTokens) -> Tensor:
    """As the next layer's router would give them a layer early."""
    ids = following.expert_ids.clone()
    ids[0, :TOP_K] = torch.tensor(right.of(ids[0, :TOP_K].tolist()), dtype=torch.int32)
    return ids


def microseconds(slots: int, seed: int, *, guessing: bool) -> tuple[list[float], float]:
    """Of each of `PARTS`, a layer; and the hit rate."""
    device = _Device()
    offload = make_offload(device, slots)
    spent = [0.0] * len(PARTS)
    before = offload.statistics
    right = SyntheticGuesses(EXPERTS, TOP_K, CAREFUL, seed)
    for number, layers in enumerate(routed_layers(seed)):
        if number == WARM:
            spent, before = [0.0] * len(PARTS), offload.statistics.since(type(before)())
        for layer, routed in enumerate(layers):
            device.clock.now += LAYER_S
            following = layers[layer + 1] if guessing and layer + 1 < LAYERS else None
            guesses = None if following is None else guessed_ids(right, following)
            times = [perf_counter()]
            buffers = offload.begin(layer, routed, guesses)
            times.append(perf_counter())
            offload.prepare_hits(layer)
            offload.launch_hits(layer, routed, buffers)
            times.append(perf_counter())
            rest = offload.misses(
                layer, routed, buffers, device.mark(), guessed=guesses is not None
            )
            times.append(perf_counter())
            offload.finish(rest)
            times.append(perf_counter())
            for part in range(len(PARTS)):
                spent[part] += times[part + 1] - times[part]
    hit_rate = offload.statistics.since(before).hit_rate
    assert hit_rate is not None
    return [one / (TOKENS * LAYERS) * 1e6 for one in spent], hit_rate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.coordination", description=__doc__)
    parser.add_argument("--slots", type=int, default=20, help="of 64 experts a layer")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = [
        [microseconds(options.slots, seed, guessing=guessing) for guessing in (False, True)]
        for seed in range(options.rounds)
    ]
    rate = median(one[0][1] for one in rounds)
    lines = [f"`python -m bench.coordination --slots {options.slots}`: hit rate {rate:.2f}."]
    report = Report("coordination", options.output, lines)
    names = ["no guesses", "best and worst round", "with guesses", "best and worst round"]
    report.table("µs of the host, a layer", ["part", *names])
    for part, name in enumerate(PARTS):
        cells = []
        for guessing in (0, 1):
            times = [one[guessing][0][part] for one in rounds]
            cells += [f"{median(times):.1f}", f"{min(times):.1f} to {max(times):.1f}"]
        report.row(name, *cells)
    print(report.write())


if __name__ == "__main__":
    main()
