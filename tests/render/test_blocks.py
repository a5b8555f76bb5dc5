"""Blocks on the screen, as they come and when they are finished."""

from __future__ import annotations

import re

import pytest

from tests.render.support import THEME, UNSTYLED, lines, looks, rows, terminal_after
from xverse_cli.render.markdown.stream import MarkdownStream
from xverse_cli.render.markdown.wrap import row_text

BLOCKS = {
    "paragraphs": ("one\n\n\n\ntwo", "one||two"),
    "a heading": ("# One\ntext", "One||text"),
    "an underlined heading": ("One\n===\ntext", "One||text"),
    "a rule": ("a\n\n---\n\nb", "a||" + "─" * 40 + "||b"),
    "a list after its introduction": ("so:\n- a\n- b", "so:|• a|• b"),
    "a list set off": ("so:\n\n- a\n\n- b\n\nend", "so:||• a||• b||end"),
    "numbers go on": ("3. a\n3. b\n9. c", "3. a|4. b|5. c"),
    "another list": ("1. a\n1) b", "1. a|1) b"),
    "nested": ("- a\n  - b\n    - c\n      - d\n- e", "• a|  ◦ b|    ▪ c|      • d|• e"),
    "nested in numbers": ("1. a\n   - b\n\n     more\n2. c", "1. a|   • b||     more|2. c"),
    "items in one line": ("- - a\n  - b", "• ◦ a|  ◦ b"),
    "an empty item": ("- \n- b", "•|• b"),
    "a quote": ("> a\n> b\n\nc", "│ a b||c"),
    "a quote with more": ("> a\n>\n> - b\n>   - c\n> > d", "│ a|│|│ • b|│   ◦ c|│|│ │ d"),
    "a lazy quote": ("> a\nb", "│ a b"),
    "code": ("```\na\n\n  b\n```\nc", "  a||    b||c"),
    "code with a language": ("~~~py\na\n~~~", "  py|  a"),
    "code in an item": ("- a\n\n  ```\n  b\n  ```\n- c", "• a||    b|• c"),
    "code set in": ("  ```\n  a\n    b\n  ```", "  a|    b"),
    "code set in behind a marker": ("- ```py\n  a\n  ```\n- b", "•   py|    a|• b"),
    "a long language": (
        "```" + "long " * 12 + "\na",
        ("  " + "long " * 7 + "|      " + "long " * 5).replace(" |", "|").rstrip() + "|  a",
    ),
    "code that does not end": ("```\na", "  a"),
    "indented code": ("a\n\n    b\n\n\n    c\n\nd", "a||  b|||  c||d"),
    "tabs": ("```\n\ta\tb\n```", "      a   b"),
    "a table": ("|a|b|\n|-|-:|\n|专家|1|\n\nc", "a    │ b|─────┼──|专家 │ 1||c"),
    "a table without rows": ("|a|b|\n|-|-|\n", "a │ b|──┼──"),
    "a table in an item": (
        "- x\n\n  |a|b|\n  |-|-|\n  |c|d|\n- y",
        "• x||  a │ b|  ──┼──|  c │ d|• y",
    ),
    "no table": ("|a|b|\nc", "|a|b| c"),
    "mathematics": ("$$\na_1\n= b_2 \\\\\n$$\nc", "  $$|  a_1|  = b_2 \\\\|  $$||c"),
    "mathematics that does not end": ("$$\na_1\n\nc", "  $$|  a_1||c"),
    "mathematics in brackets": ("\\[\nx - y\n\\]\n", "  \\[|  x - y|  \\]"),
    "html": ("<div>\n*a*\n</div>", "<div> a </div>"),
    "no definition of a link": ("[a]: /u\n\n[a] b", "a (/u) b"),
    "a definition that comes late": ("[a] b\n\n[a]: /u\n\nc", "[a] b||[a]: /u||c"),
    "nothing": ("", ""),
    "blank": ("\n\n \n", ""),
}


@pytest.mark.parametrize(("text", "shown"), BLOCKS.values(), ids=BLOCKS)
def test_blocks(text: str, shown: str) -> None:
    assert "|".join(line.replace("|", "¦") for line in lines(text)) == _bars(shown, text)


def _bars(shown: str, text: str) -> str:
    return "¦a¦b¦ c" if text == "|a|b|\nc" else shown


def test_without_looks_headings_keep_their_signs() -> None:
    assert lines("## One *two*\n\n**a**", theme=UNSTYLED) == ["## One two", "", "a"]


def test_looks_of_blocks() -> None:
    assert looks("1. a\n- b", "91") == ["1. ", "• "]
    assert looks("> a", "92") == ["│ "]


NARROW = "|Format|Size of it|Notes|\n|-|-|-|\n|int4|15 GB|fits|\n|int8|27 GB|does not|\n"


def test_a_table_without_room_is_a_list() -> None:
    assert lines(NARROW, 16) == [
        "Format: int4",
        "Size of it: 15",
        "GB",
        "Notes: fits",
        "────────────────",
        "Format: int8",
        "Size of it: 27",
        "GB",
        "Notes: does not",
    ]


def test_cells_are_wrapped() -> None:
    table = "|项目|说明|\n|-|-|\n|一|这是一个很长的说明，需要换行。|\n|二|短|\n"
    assert lines(table, 20) == [
        "项目 │ 说明",
        "─────┼──────────────",
        "一   │ 这是一个很长",
        "     │ 的说明，需要",
        "     │ 换行。",
        "     │",
        "二   │ 短",
    ]


def test_br_breaks_the_line_in_a_cell_and_nowhere_else() -> None:
    table = "|Step|How<br>it goes|\n|-|-:|\n|1|**read** <br/> then *write*<BR>`a<br>b`|\n|2||\n"
    assert lines(table, 40) == [
        "Step │        How",
        "     │    it goes",
        "─────┼───────────",
        "1    │       read",
        "     │ then write",
        "     │     a<br>b",
        "     │",
        "2    │",
    ]
    assert lines(table, 12)[:4] == ["Step: 1", "How it goes:", "read", "then write"]
    assert lines("Vec<br>x") == ["Vec<br>x"]


def test_a_row_is_never_too_wide_in_a_deep_nest() -> None:
    deep = "".join(" " * (2 * depth) + f"- level {depth} word\n" for depth in range(12))
    for columns in (8, 12, 20, 40):
        assert max(len(line) for line in lines(deep, columns)) <= columns
        assert "".join("".join(lines(deep, columns)).split()).count("level11word") == 1


@pytest.mark.parametrize("deep", ["> " * 200, "- " * 200, ">" * 300, "1. " * 99])
def test_nothing_is_lost_in_a_very_deep_nest(deep: str) -> None:
    shown = re.sub(r"[│ ]", "", "".join(lines(deep + "bottom\n", 40)))
    assert shown.endswith("bottom")
    lines_of = "".join(f"{'  ' * depth}- {depth}\n" for depth in range(99))
    assert re.findall(r"\d+", " ".join(lines(lines_of, 400))) == [str(i) for i in range(99)]


# While it comes


def committed(stream: MarkdownStream, text: str) -> list[str]:
    return [row_text(row) for row in stream.feed(text)]


def tail(stream: MarkdownStream) -> list[str]:
    return [row_text(row) for row in stream.tail()]


def test_a_paragraph_goes_row_by_row_without_line_ends() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    assert committed(stream, "混合专家模型是一") == []
    assert tail(stream) == ["混合专家模型是一"]
    out = committed(stream, "种架构，它把前馈网络分成许多专家")
    assert out == ["混合专家模型是一种架"]
    assert tail(stream) == ["构，它把前馈网络分成", "许多专家"]


def test_open_emphasis_holds_its_rows_until_it_is_closed() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    assert committed(stream, "one **two three four five six seven") == []
    assert committed(stream, "** and so on and on and on and on") != []


def test_code_goes_line_by_line() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    assert committed(stream, "```py\nx = 1\ny =") == ["  py", "  x = 1"]
    assert tail(stream) == ["  y ="]


def test_the_end_of_code_does_not_flash_up() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    committed(stream, "```py\nx = 1\n``")
    assert tail(stream) == []


def test_items_go_one_by_one() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    assert committed(stream, "- a\n- b\n- ") == ["• a"]
    assert committed(stream, "c") == []
    assert tail(stream) == ["• b", "• c"]


def test_a_table_is_held_and_says_so() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    assert committed(stream, "x\n\n|a|b|\n|-|-|\n|1|2|\n|3|") == ["x"]
    assert tail(stream) == ["", "table… 1 × 2"]
    assert committed(stream, "4|\n") == []
    assert tail(stream) == ["", "table… 2 × 2"]
    assert committed(stream, "\n") == ["", "a │ b", "──┼──", "1 │ 2", "3 │ 4"]


def test_a_very_long_table_comes_in_parts() -> None:
    stream = MarkdownStream(THEME, 20, 24)
    text = "|a|b|\n|-|-|\n" + "".join(f"|{i}|x|\n" for i in range(950)) + "\nend"
    out = [*committed(stream, text), *[row_text(row) for row in stream.finish()]]
    assert sum("─┼" in line for line in out) == 3
    assert [line for line in out if "x" in line] == [
        line for line in out if line.rstrip().endswith("│ x")
    ]
    assert sum(line.rstrip().endswith("│ x") for line in out) == 950
    assert out[-1] == "end"


def test_the_tail_stays_well_below_the_screen() -> None:
    """Whatever is open: what fills half of the screen goes out as it is."""
    stream = MarkdownStream(THEME, 20, 12)
    for text in ("**open " + "and word " * 60, "\n\n`open " + "and word " * 60, "\n\n[open " * 30):
        for character in text:
            stream.feed(character)
            assert len(stream.tail()) <= 9


def test_a_setext_heading_is_one_row_at_most() -> None:
    assert "1" not in {span.sgr for row in rows("long words here\n===\n", 10) for span in row}
    assert lines("long words here\n===\n", 10) == ["long words", "here ==="]
    assert lines("long words here\n===\n", 40) == ["long words here"]


def test_a_reply_in_pieces_ends_as_the_whole() -> None:
    text = "".join(f"{name}\n\n" for name, _ in BLOCKS.values())
    whole = terminal_after([text], 40, 10)
    assert terminal_after(text, 40, 10).lines == whole.lines
