"""The specification's own examples: no exception, and the words of the expected HTML in order.

Exceptions are listed and looked at: raw HTML, which is shown as text, and references that come
before their definition, which has not been read yet when they are shown.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.render.support import terminal_after, words
from xverse_cli.render.markdown import inline

EXAMPLES = json.loads((Path(__file__).parent / "commonmark" / "examples.json").read_text("utf-8"))

# Outside the two sections about it.
RAW_HTML = {21, 31, 201, 308, 309, 344, 475, 476, 477, 491, 494, 524, 536, 642, 643}
LATE_DEFINITIONS = {
    *(23, 33, 203, 204, 214, 218, 527, 528, 529, 530, 531, 532, 533, 534, 535, 538, 539, 540, 542),
    *(
        537,
        543,
        549,
        553,
        554,
        555,
        556,
        557,
        558,
        559,
        560,
        561,
        562,
        563,
        565,
        566,
        567,
        568,
        569,
    ),
    *(570, 571, 573, 576, 577, 582, 583, 584, 585, 586, 587, 588, 589, 591, 592, 593),
}
HTML_SECTIONS = {"HTML blocks", "Raw HTML"}


class _Words(HTMLParser):
    """The text of a page; an image counts with what stands for it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.parts.append(dict(attrs).get("alt") or "image")

    handle_startendtag = handle_starttag


def expected(html: str) -> str:
    reader = _Words()
    reader.feed(html)
    reader.close()
    return "".join("".join(reader.parts).split())


@pytest.fixture(autouse=True)
def _no_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address beside a link is no text of the page."""
    monkeypatch.setattr(inline, "_wants_target", lambda *_: False)


def test_all_examples_are_there() -> None:
    assert [example["number"] for example in EXAMPLES] == list(range(1, 653))
    assert sum(example["section"] in HTML_SECTIONS for example in EXAMPLES) == 64


@pytest.mark.parametrize("columns", [80, 11])
def test_words(columns: int) -> None:
    wrong = set()
    for example in EXAMPLES:
        shown = words(example["markdown"], columns)
        if shown != expected(example["html"]) and example["section"] not in HTML_SECTIONS:
            wrong.add(example["number"])
    assert wrong == RAW_HTML | LATE_DEFINITIONS


def test_html_is_shown_as_it_is_written() -> None:
    """Every tag that HTML would swallow is on the screen."""
    for example in EXAMPLES:
        if example["section"] in HTML_SECTIONS:
            shown = words(example["markdown"])
            for tag in re.findall(r"<[a-z]+>", example["html"]):
                if tag in example["markdown"]:
                    assert tag in shown, example


def test_late_definitions_are_right_when_they_come_first() -> None:
    """The same examples, with the definitions before what refers to them."""
    definition = re.compile(r"^ {0,3}(?:> ?)?\[(?:[^\[\]\\]|\\.)+\]:.*$", re.MULTILINE)
    # In these the definition is not a line of its own, or the HTML is what differs.
    others = {214, 218}
    for example in EXAMPLES:
        if example["number"] in LATE_DEFINITIONS - others:
            text = example["markdown"]
            found = "\n".join(definition.findall(text))
            moved = f"{found}\n\n{definition.sub('', text)}"
            assert words(moved) == expected(example["html"]), example


def test_late_definitions_are_shown() -> None:
    """What the reference does not tell, the definition does."""
    for example in EXAMPLES:
        if example["number"] in LATE_DEFINITIONS:
            targets: list[Any] = re.findall(r"\]:\s*(\S+)", example["markdown"])
            shown = words(example["markdown"])
            assert all(target in shown for target in targets), (shown, example)


def test_in_pieces_on_a_terminal() -> None:
    for example in EXAMPLES[::3]:
        text = example["markdown"]
        assert terminal_after(text, 20, 6).lines == terminal_after([text], 20, 6).lines, example
