"""What stands inside a paragraph: emphasis, code, links, mathematics, line ends."""

from __future__ import annotations

import pytest

from tests.render.support import THEME, UNSTYLED, lines, looks, rows
from xverse_cli.render.markdown.settled import anywhere, as_if_closed, settled
from xverse_cli.render.markdown.stream import MarkdownStream
from xverse_cli.render.markdown.wrap import Span

BOLD = {
    "**重点：**内容": ["重点："],
    "内容**（重点）**内容": ["（重点）"],
    "他说**“你好”**然后": ["“你好”"],
    "使用**Python。**很好": ["Python。"],
    "**《书》**、**『名』**": ["《书》", "『名』"],
    "请按**“确定”**键": ["“确定”"],
    "__重点__ 内容": ["重点"],
    "**a** b **c**": ["a", "c"],
    "2**10": [],
    "** a **": [],
    "snake__case__name": [],
    '内容**"重点"**内容': ['"重点"'],
    'a**"b"**c': [],  # as in CommonMark: these are no Han
}


@pytest.mark.parametrize("text", BOLD)
def test_strong_emphasis(text: str) -> None:
    assert looks(text, "1") == BOLD[text]


def test_emphasis_inside_emphasis() -> None:
    assert looks("**a *b* ~~c~~**", "1") == ["a ", "b", " ", "c"]
    assert looks("**a *b* ~~c~~**", "3") == ["b"]
    assert looks("**a *b* ~~c~~**", "9") == ["c"]


SHOWN = {
    "Vec<T> and <think>x</think>": "Vec<T> and <think>x</think>",
    "`Vec<T>` &amp; &lt;b&gt;": "Vec<T> & <b>",
    "[bold]x[/bold] :smile:": "[bold]x[/bold] :smile:",
    "\\*no\\* \\\\": "*no* \\",
    "![a cat](https://x.y/cat.png)": "a cat",
    "![](https://x.y/cat.png)": "image",
    "混合\n专家": "混合专家",
    "混合，\n（专家）": "混合，（专家）",
    "混合\nexperts\n专家": "混合 experts 专家",
    "**混合**\n**专家**": "混合专家",
    "안녕\n세계": "안녕 세계",
    "one\ntwo": "one two",
    "- [ ] todo": "☐ todo",
    "- [x] done": "☑ done",
    "- [y] neither": "• [y] neither",
    "- []": "• []",
}


@pytest.mark.parametrize("text", SHOWN)
def test_text(text: str) -> None:
    assert lines(text) == [SHOWN[text]]


def test_hard_line_breaks() -> None:
    assert lines("one  \ntwo\\\nthree") == ["one", "two", "three"]


MATHS = {
    "$a_b * c_d$ and $x*y*z$": ["$a_b * c_d$", "$x*y*z$"],
    "$$a_b*c*d$$": ["$$a_b*c*d$$"],
    r"\(a_b*c*d\) \[x_1\]": [r"\(a_b*c*d\)", r"\[x_1\]"],
    "costs $5 and $6": [],
    "$ 5 *a* $": [],
    "从$x_1$到$x_2$": ["$x_1$", "$x_2$"],
}


@pytest.mark.parametrize("text", MATHS)
def test_mathematics_stays_as_written(text: str) -> None:
    assert looks(text, "33") == MATHS[text]


def href(text: str) -> list[tuple[str, str]]:
    return [(span.text, span.href) for row in rows(text, 80) for span in row if span.href]


def test_links() -> None:
    assert href("[a *b*](https://x.y/z)") == [("a ", "https://x.y/z"), ("b", "https://x.y/z")]
    assert href("<https://x.y>") == [("https://x.y", "https://x.y")]
    assert lines("[a](https://x.y/z)", theme=UNSTYLED) == ["a (https://x.y/z)"]
    assert lines("<https://x.y/z>", theme=UNSTYLED) == ["https://x.y/z"]
    assert lines("<me@x.y>", theme=UNSTYLED) == ["me@x.y"]


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "file:///etc/passwd", "mailto:a@b.c", "ftp://x.y", "/local", "data:x"],
)
def test_only_http_can_be_clicked_on(target: str) -> None:
    assert href(f"[text]({target})") == []


@pytest.mark.parametrize(
    "shown", ["https://bank.example", "bank.example", "www.bank.example/login"]
)
def test_a_link_that_looks_like_another_shows_where_it_leads(shown: str) -> None:
    assert lines(f"[{shown}](https://evil.example/a)", 80) == [f"{shown} (https://evil.example/a)"]


def test_a_link_that_is_what_it_looks_like() -> None:
    assert lines("[x.y/z](https://x.y/z/)", 80) == ["x.y/z"]
    assert lines("[see here](https://x.y/z)", 80) == ["see here"]


def test_targets_cannot_steer_the_terminal() -> None:
    for row in rows("[a](<https://x.y/\x1b\\\x07;é b>)", 80):
        for span in row:
            assert all("!" <= character <= "~" for character in span.href)


def test_without_looks_code_keeps_its_marks() -> None:
    assert lines("`a` ``b`c``", theme=UNSTYLED) == ["`a` ``b`c``"]


@pytest.mark.parametrize(
    ("source", "before"),
    [
        ("plain text", "plain tex"),
        ("plain **bold", "plain"),
        ("plain **bold** te", "plain **bold** t"),
        ("plain `code", "plain"),
        ("plain `code` te", "plain `code` t"),
        ("plain [te](x", "plain"),
        ("plain [te](x) te", "plain [te](x) t"),
        ("plain [te] te", "plain [te] t"),
        ("5 * 3 * 2", "5 * 3"),
        ("a & b &am", "a & b"),
        ("a < b <htt", "a < b"),
        ("$5 and", ""),
        ("a $x$ b ", "a $x$ b"),
        ("x \\", "x"),
        ("ae\u0301", "a"),
        ("**a", ""),
        ("", ""),
        ("\x01ab c", "\x01ab"),
    ],
)
def test_what_can_no_longer_change(source: str, before: str) -> None:
    assert source[: settled(source)] == before


def test_what_is_settled_means_the_same_apart_as_together() -> None:
    """Cut at every place that the scan allows: the text is as without a cut."""
    text = (
        "plain **bold *both* more** `co*de` [te *x* t](http://a.b) $x_1*2*3$ "
        "混合**重点：**专家 a_b_c 5 * 3 ~~gone~~ \\*no\\* &amp; <http://x.y> end"
    )
    whole = "".join(lines(text, 400))
    for end in range(1, len(text)):
        place = settled(text[:end])
        assert whole.startswith("".join(lines(text[:place], 400))), text[:place]


def test_a_cut_that_must_be_keeps_characters_whole() -> None:
    assert anywhere("ab👍🏽") in (1, 2)
    assert anywhere("****") == 3  # nothing but signs: among them, then
    assert anywhere("ab**") == 2


OPEN = {
    # what has come, how it is shown, what opens it again
    "a **bo": ("a **bo**", "**"),
    "a **bold*": ("a **bold**", "**"),
    "a **bold**": ("a **bold**", "**"),
    "a **bold ": ("a **bold** ", "**"),
    "a **": ("a ", ""),
    "*a **b": ("*a **b***", "***"),
    "a `co": ("a `co`", "`"),
    "a ``c`d": ("a ``c`d", ""),
    "a ~~b": ("a ~~b~~", "~~"),
    "**重点：": ("**重点：**", "**"),
    "a ** b": ("a ** b", ""),
    "snake_case": ("snake_case", ""),
    "\\*": ("\\*", ""),
    "[a **b": ("[a **b**", "**"),
}


@pytest.mark.parametrize("source", OPEN)
def test_what_is_open_looks_closed(source: str) -> None:
    assert as_if_closed(source) == OPEN[source]


def test_the_tail_has_its_looks_before_it_is_closed() -> None:
    stream = MarkdownStream(THEME, 40, 24)
    stream.feed("a **bold `co")
    assert stream.tail() == [(Span("a "), Span("bold ", "1"), Span("co", "1;36"))]
    stream.feed("de` on** off")
    shown = (Span("a "), Span("bold ", "1"), Span("code", "1;36"), Span(" on", "1"), Span(" off"))
    assert stream.tail() == [shown]
    assert stream.finish() == [shown]


def test_what_never_closes_ends_as_it_is_written() -> None:
    stream = MarkdownStream(THEME, 40, 24)
    stream.feed("a **bold `co")
    assert stream.finish() == [(Span("a **bold `co"),)]
