"""Draws docs/offload-timeline.svg: one token of a simulated run, and four of its layers enlarged.

Usage: timeline.py [FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from xverse_runtime.config import ModelConfig
from xverse_runtime.memory_plan import Wishes, plan_memory
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.policy import ScoreWindow
from xverse_runtime.offload.simulator import Options, Simulation
from xverse_runtime.offload.simulator_compare import made_up_tokens
from xverse_runtime.offload.simulator_hardware import Span
from xverse_runtime.offload.simulator_workload import Workload
from xverse_runtime.offload.synthetic_guesses import DEMO
from xverse_runtime.store.synthetic import A4_2B

TARGET = Path(__file__).resolve().parent.parent / "docs" / "offload-timeline.svg"
MACHINE = "RTX 4060 8GB"
WARM_UP = 391
FIRST_LAYER, LAYERS = 17, 4

WIDTH, LEFT, ROW, BAR = 1000, 70, 34, 22
LANES = {"gpu": "GPU", "cpu": "CPU", "link": "link"}
COLOURS = {
    "attention": "#5b7fbf",
    "experts": "#7fae6e",
    "expert": "#3f7f4f",
    "head": "#5b7fbf",
    "computed": "#d08a3e",
    "critical": "#b5484b",
    "ahead": "#8a5fa8",
    "background": "#b9a7c9",
}
LEGEND = (
    ("attention", "attention, head"),
    ("experts", "experts that were there"),
    ("expert", "experts that crossed"),
    ("computed", "experts on the CPU"),
    ("critical", "copies that are waited for"),
    ("ahead", "copies a layer ahead"),
    ("background", "copies for later tokens"),
)


def kind(span: Span) -> str:
    """The colour of a piece of work."""
    if span.part == "cpu":
        return "computed"
    if span.part == "link":
        if " ahead of " in span.what:
            return "ahead"
        return "critical" if " for layer " in span.what else "background"
    return span.what.split()[0]


def one_token() -> list[Span]:
    """The work of a token, its beginning at 0."""
    machine, model = find_machine(MACHINE), ModelConfig.from_dict(A4_2B)
    placement = plan_memory(model, machine, Wishes("cuda", "int4", 4096)).placement
    policy = ScoreWindow.for_model(model.num_layers, model.top_k)
    options = Options(journal=True, guessed=DEMO)
    simulation = Simulation(
        Workload.of(placement), machine, placement.expert_slots, policy, options
    )
    tokens = made_up_tokens(model, WARM_UP + 1)
    simulation.run(tokens[:WARM_UP])
    begun = simulation.hardware.clock.now
    simulation.run(tokens[WARM_UP:])
    spans = simulation.journal or []
    return [
        span._replace(start=max(0.0, span.start - begun), end=span.end - begun)
        for span in spans
        if span.end > begun and span.part in LANES
    ]


@dataclass(frozen=True)
class View:
    """A stretch of time, drawn from ``top`` on."""

    start: float
    end: float
    top: int
    tick: float

    def x(self, time: float) -> float:
        return LEFT + (time - self.start) / (self.end - self.start) * (WIDTH - LEFT - 20)

    def shapes(self, spans: Sequence[Span], title: str) -> Iterator[str]:
        """Lanes, bars, and marks of the time."""
        yield text(LEFT, self.top - 10, title, "start")
        for place, (part, name) in enumerate(LANES.items()):
            y = self.top + place * ROW
            yield text(LEFT - 10, y + 16, name, "end")
            yield box(LEFT, y, WIDTH - LEFT - 20, BAR, "#f1f1ee")
            for span in spans:
                if span.part == part and span.start < self.end and span.end > self.start:
                    start, end = (
                        self.x(max(span.start, self.start)),
                        self.x(min(span.end, self.end)),
                    )
                    yield box(start, y, max(0.3, end - start), BAR, COLOURS[kind(span)])
        bottom = self.top + len(LANES) * ROW
        ticks = int((self.end - self.start) / self.tick)
        for number in range(ticks + 1):
            time = self.start + number * self.tick
            label = f"{1000 * number * self.tick:.3g} ms"
            yield text(self.x(time), bottom + 8, label, "middle")


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{colour}"/>'


def text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def drawing() -> str:
    """The picture."""
    spans = one_token()
    end = max(span.end for span in spans if span.part == "gpu")
    starts = {span.what: span.start for span in spans if span.part == "gpu"}
    first = starts[f"attention {FIRST_LAYER}"]
    last = starts[f"attention {FIRST_LAYER + LAYERS}"]
    whole, part = View(0.0, end, 40, 0.005), View(first, last, 210, 0.0005)
    shapes = [
        *whole.shapes(spans, f"One token, int4, {MACHINE}, 20 of 64 experts a layer on the GPU"),
        *part.shapes(spans, f"Layers {FIRST_LAYER} to {FIRST_LAYER + LAYERS - 1} of it"),
    ]
    for place, (name, words) in enumerate(LEGEND):
        x, y = LEFT + place % 3 * 290, 355 + place // 3 * 22
        shapes += [box(x, y - 12, 14, 14, COLOURS[name]), text(x + 22, y, words, "start")]
    style = 'font-family="sans-serif" font-size="13" fill="#333"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 412" {style}>',
            f'<rect width="{WIDTH}" height="412" fill="#fff"/>',
            *shapes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(drawing(), encoding="utf-8")
