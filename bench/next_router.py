"""How well a layer's router can be asked one layer too early: which experts the next layer needs.

    python -m bench.next_router [--model DIR] [--text FILE] [--slots N]

The router of layer L+1, with its norm, looks at the residual stream of layer L: before the experts
of L (it is there when their choice is, so a copy can begin), with its shared experts added, or with
all of them (as good as it gets without attention, and too late for a copy). Counted is what share
of its guesses is among the experts that layer L+1 then chooses: by the rank of the guess, and for
those guesses alone that a cache lacks, which is what a prefetch copies. The default is the demo
with its held-out text and its corpus's answers; each line of ``--text`` is a sequence of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bench.precision import Text
from bench.table import Report
from xverse_kernels.types import RoutedTokens
from xverse_runtime.config import EngineConfig
from xverse_runtime.demo import demo_directory
from xverse_runtime.engine import Engine
from xverse_runtime.model import Decoder, DecoderLayer
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.policy import ScoreWindow

SOURCES = ("before the experts", "with shared experts", "with all experts")
GUESSES = 3  # that a cache lacks: told apart
WARM = 256  # tokens before the cache counts


@dataclass
class Shares:
    """Of something that was guessed, how often it was right."""

    right: int = 0
    all: int = 0

    def count(self, right: bool) -> None:
        self.right += right
        self.all += 1

    @property
    def percent(self) -> str:
        return f"{100 * self.right / self.all:.1f}" if self.all else "-"


class Streams:
    """The residual stream of each layer of the pass that was computed last."""

    def __init__(self, decoder: Decoder) -> None:
        self.layers = list(decoder.layers)
        self.guesses: dict[tuple[str, int], list[list[int]]] = {}  # ids, the most probable first
        self.chosen: dict[int, list[list[int]]] = {}
        self.likely: dict[int, list[list[float]]] = {}
        self._top_k = decoder.config.top_k
        for number, layer in enumerate(self.layers):
            assert layer._moe is not None
            decoder.layers[number] = _Watched(self, number, layer)

    def see(self, number: int, x: Tensor, routed: RoutedTokens, out: Tensor) -> None:
        """A layer went from ``x`` to ``out``."""
        likely = routed.logits.softmax(-1).topk(min(2 * self._top_k, routed.logits.shape[1]))
        self.chosen[number] = likely.indices.tolist()
        self.likely[number] = likely.values.tolist()
        if number + 1 == len(self.layers):
            return
        layer, following = self.layers[number], self.layers[number + 1]
        weights = routed.weights.clone()
        weights[:, : self._top_k] = 0
        assert layer._moe is not None
        experts = layer._moe._weights.experts
        shared = layer._moe._kernels.experts(routed._replace(weights=weights), experts, x, None)
        for source, stream in zip(SOURCES, (x, shared, out), strict=True):
            guess = following.route(stream).logits.topk(self._top_k).indices
            self.guesses[source, number + 1] = guess.tolist()


class _Watched:
    """A layer whose streams are looked at."""

    def __init__(self, streams: Streams, number: int, layer: DecoderLayer) -> None:
        self._streams, self._number, self._layer = streams, number, layer

    def __call__(self, x: Tensor, attend: Callable[[Tensor, int], Tensor], *_: object) -> Tensor:
        x, routed = self._layer.until_experts(x, attend)
        moe = self._layer._moe
        assert moe is not None
        out = moe._kernels.experts(routed, moe._weights.experts, x, None)
        self._streams.see(self._number, x, routed, out)
        return out


@dataclass
class Counted:
    """What all sequences came to.

    Args:
        by_rank: of each source, for each rank of a guess: was it chosen?
        by_chosen: for each rank of what was chosen: had it been guessed?
        by_layer: of guesses before the experts, for each layer.
        before: what the token before used in the layer, as a guess.
        lacking: of guesses that the cache lacks, the first, second ..: was it chosen?
        misses: of chosen experts that the cache lacks: were they among so many such guesses?
    """

    by_rank: dict[str, list[Shares]]
    by_chosen: list[Shares]
    by_layer: list[Shares]
    before: Shares = field(default_factory=Shares)
    lacking: list[Shares] = field(default_factory=lambda: [Shares() for _ in range(GUESSES)])
    misses: list[Shares] = field(default_factory=lambda: [Shares() for _ in range(GUESSES)])


class Study:
    """Counts over sequences; the cache lives through all of them."""

    def __init__(self, engine: Engine, slots: int) -> None:
        """``slots``: of each layer on average, in the cache that is asked what it lacks."""
        config = engine._decoder.config
        self._engine, self._top_k, self._layers = engine, config.top_k, config.num_layers
        self._streams = Streams(engine._decoder)
        policy = ScoreWindow.for_model(config.num_layers, config.top_k)
        self._slots = ExpertSlots(
            config.num_layers, config.num_experts, slots * config.num_layers, policy
        )
        self._tokens = 0
        self.counted = Counted(
            {source: [Shares() for _ in range(config.top_k)] for source in SOURCES},
            [Shares() for _ in range(config.top_k)],
            [Shares() for _ in range(config.num_layers)],
        )

    @property
    def tokens(self) -> int:
        return self._tokens

    def add(self, ids: Sequence[int]) -> None:
        """One sequence."""
        self._engine._cache.truncate(0)
        self._engine._decoder.forward(ids, self._engine._cache)
        for token in range(len(ids)):
            self._tokens += 1
            for layer in range(self._layers):
                self._count(layer, token)
                self._use(layer, token)

    def _count(self, layer: int, token: int) -> None:
        if layer == 0:
            return
        streams, counted = self._streams, self.counted
        chosen = streams.chosen[layer][token][: self._top_k]
        for source in SOURCES:
            for rank, guess in enumerate(streams.guesses[source, layer][token]):
                counted.by_rank[source][rank].count(guess in chosen)
        guesses = streams.guesses[SOURCES[0], layer][token]
        for rank, expert in enumerate(chosen):
            counted.by_chosen[rank].count(expert in guesses)
            counted.by_layer[layer].count(expert in guesses)
            if token:
                counted.before.count(expert in streams.chosen[layer][token - 1][: self._top_k])
        if self._tokens <= WARM:
            return
        table = self._slots.table(layer)
        lacking = [guess for guess in guesses if table[guess] < 0][:GUESSES]
        for place, guess in enumerate(lacking):
            counted.lacking[place].count(guess in chosen)
        for expert in chosen:
            if table[expert] < 0:
                for most in range(GUESSES):
                    counted.misses[most].count(expert in lacking[: most + 1])

    def _use(self, layer: int, token: int) -> None:
        """The cache goes on, with everything uploaded that its policy wants."""
        slots, streams, top_k = self._slots, self._streams, self._top_k
        listed, likely = streams.chosen[layer][token], streams.likely[layer][token]
        slots.enter_layer()
        missing = slots.use(layer, listed[:top_k], likely)
        for expert, probability in zip(listed[top_k:], likely[top_k:], strict=True):
            slots.policy.on_use((layer, expert), probability, chosen=False)
        for key in missing:
            if slots.reserve(key) is not None:
                slots.commit(key)


def sequences(engine: Engine, text: Path | None) -> Iterator[list[int]]:
    """Ids of each, as long as the context allows."""
    if text is not None:
        lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = [engine.encode_prompt(line) for line in lines]
    else:
        own = Text(engine)
        ids = [one for one, _ in (*own.paragraphs, *own.answers)]
    for one in ids:
        yield one[: engine.context_length]


def tell(report: Report, study: Study, experts: int, slots: int) -> None:
    """The tables."""
    counted, top_k = study.counted, len(study.counted.by_chosen)
    report.say(
        f"{study.tokens} tokens, top {top_k} of {experts}: {100 * top_k / experts:.1f} % by chance."
    )
    ranks = [str(rank + 1) for rank in range(top_k)]
    report.table("Guesses that were chosen, %, by rank", ["stream", *ranks, "all"])
    for source in SOURCES:
        shares = counted.by_rank[source]
        report.row(source, *(one.percent for one in shares), _together(shares).percent)
    report.table("Chosen experts that were guessed, %, by rank", ["stream", *ranks, "all"])
    shares = counted.by_chosen
    report.row(SOURCES[0], *(one.percent for one in shares), _together(shares).percent)
    report.row("the token before chose them", *(["-"] * top_k), counted.before.percent)
    layers = [str(layer) for layer in range(1, len(counted.by_layer))]
    report.table("The same, by layer", ["stream", *layers])
    report.row(SOURCES[0], *(one.percent for one in counted.by_layer[1:]))
    report.table(
        f"Guesses before the experts that a cache of {slots} slots a layer lacks, %",
        ["", *(f"first {most + 1}" if most else "the first" for most in range(GUESSES))],
    )
    places = [str(_percent(counted.lacking[: most + 1])) for most in range(GUESSES)]
    report.row("of them were chosen", *places)
    report.row("of all misses were among them", *(one.percent for one in counted.misses))


def _together(shares: Sequence[Shares]) -> Shares:
    return Shares(sum(one.right for one in shares), sum(one.all for one in shares))


def _percent(shares: Sequence[Shares]) -> str:
    return _together(shares).percent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.next_router",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=demo_directory(), help="its directory")
    parser.add_argument("--text", type=Path, help="a sequence on each line")
    parser.add_argument("--slots", type=int, help="of a layer, in the cache; a third without it")
    parser.add_argument("--precision", default="auto", help="of the weights")
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    engine = Engine.load(options.model, EngineConfig(device="cpu", precision=options.precision))
    config = engine._decoder.config
    if not config.is_moe:
        parser.error(f"{options.model} has no experts")
    slots = options.slots or max(1, config.num_experts // 3)
    study = Study(engine, slots)
    with torch.inference_mode():
        for ids in sequences(engine, options.text):
            study.add(ids)
    name = "demo" if options.model == demo_directory() else options.model.name
    report = Report("next-router", options.output, [f"`python -m bench.next_router`: {name}."])
    tell(report, study, config.num_experts, slots)
    print(report.write())


if __name__ == "__main__":
    main()
