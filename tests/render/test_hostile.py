"""A reply is data: whatever a model writes, the terminal is only ever told to show it."""

from __future__ import annotations

import re
import time

import pytest

from tests.render.support import THEME, lines, terminal_after
from xverse_cli.render.markdown.display import Display
from xverse_cli.render.sanitize import sanitize

# What the renderer itself writes: looks, moves inside the tail, erasing below, synchronised
# updates, and hyperlinks to http and https.
ALLOWED = re.compile(
    r"\x1b\[[0-9;]*m|\x1b\[\d*[AC]|\x1b\[J|\x1b\[\?2026[hl]|\x1b\]8;;(?:https?://[!-~]+)?\x1b\\|\r|\n"
)
ATTACKS = {
    "clear screen": "\x1b[2J\x1b[H\x1b[3Jafter",
    "title": "\x1b]0;owned\x07after",
    "title by C1": "\x9d0;owned\x9cafter",
    "clipboard": "\x1b]52;c;ZWNobyBvd25lZA==\x07after",
    "hyperlink": "\x1b]8;;https://evil.example\x1b\\https://bank.example\x1b]8;;\x1b\\after",
    "hyperlink that steers": "[a](<https://x.y/\x1b]0;t\x07>) after",
    "cursor": "before\x1b[1A\x1b[2K\x1b[999Dafter",
    "save and restore": "\x1b7\x1b[1;1Hafter\x1b8",
    "alternate screen": "\x1b[?1049hafter",
    "mouse reports": "\x1b[?1000h\x1b[?1006hafter",
    "bracketed paste": "\x1b[201~rm -rf ~\nafter",
    "device reports": "\x1b[6n\x1b[c\x05after",
    "reset": "\x1bcafter",
    "sixel": "\x1bPq#0;2;0;0;0#0~~\x1b\\after",
    "palette": "\x1b]4;0;rgb:ff/ff/ff\x07\x1b]10;red\x07after",
    "notification": "\x1b]777;notify;a;b\x07after",
    "carriage return": "good command\rbad command after",
    "backspace": "safe\x08\x08\x08\x08evil after",
    "bidirectional": "\u202egpj.exe\u2066x\u2069after",
    "end of a synchronised update": "\x1b[?2026l\x1b[2Jafter",
    "in code": "```\n\x1b[2J\x1b]0;t\x07after\n```",
    "in a table": "|a\x1b[2J|b\x1b]0;t\x07|\n|-|-|\n|after|\x9b2J|\n",
    "in a language": "```py\x1b[2J\x1b]0;t\x07\nafter\n```",
    "in a label": "[after]: https://x.y/\x1b[2J\n\n[after]",
    "markup of the console": "[bold red]after[/] [link=https://evil.example]x[/link]",
    "separators": "a\u2028b\u2029after",
    "surrogates": "\ud83d\ude00 \ud800after",
    "noncharacters": "\ufffe\uffff\ufdd0\x00after",
    "byte order mark": "\ufeffafter",
    "entities": "good&#13;bad&#10;&#9;&NewLine;&Tab;&#12;&#x202e;&#x9b;2J&#27;[2J&#1;x&#2;y after",
    "entities in code": "`&#13;` &#8238;`x` after",
    "entities in a link": "[a&#13;&#x202e;](https://x.y/&#13;&#x202e;) ![&#13;&#10;](/b) after",
    "encoded addresses": "<https://x.y/%0d%1b[2J%01%02%C2%9B%E2%80%AE> after",
    "encoded targets": "[https://x.y/%0d%1b](https://x.y/%0d%1b%E2%80%AE) after",
    "entities in a language": "```&#13;&#27;\nafter\n```",
    "entities in a table": "|&#10;|&#13;|\n|-|-|\n|after|&NewLine;|\n",
    "our own marks": "\x01a\x02after",
}


def check(written: str) -> None:
    rest = ALLOWED.sub("", written)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u061c\ud800-\udfff]", rest)
    written.encode("utf-8")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_nothing_but_showing(attack: str, piece: int) -> None:
    display = Display(THEME, lambda: (40, 24))
    parts = [display.frame(attack[at : at + piece]) for at in range(0, len(attack), piece)]
    written = "".join([*parts, display.close()])
    check(written)
    assert "after" in ALLOWED.sub("", written)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_stood_before_stays(attack: str) -> None:
    text = f"first line\n\n{attack}\n\nlast line"
    shown = terminal_after([text[at : at + 3] for at in range(0, len(text), 3)], 40, 10).lines
    assert shown[0] == "first line"
    assert shown[-1] == "last line"


def test_every_control_character_everywhere() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        for text in (
            "a{}b",
            "# a{}",
            "- {}a",
            "```{}\na{}\n```",
            "|a{}|\n|-|\n",
            "[a{}](https://x.y/{})",
        ):
            display = Display(THEME, lambda: (40, 24))
            check(display.frame(text.replace("{}", chr(code))) + display.close())


FLOODS = {
    "marks": "a" + "\u0301" * 20000,
    "joiners": "\u200d" * 20000,
    "no-break": "\ufeff\u200b" * 10000,
    "wide": "﷽𒐫" * 2000,
    "flags": "🇨🇳" * 3000,
    "families": "👨‍👩‍👧" * 2000,
    "brackets": "[" * 5000,
    "images": "![" * 2500,
    "stars": "**a" * 3000,
    "stars alone": "*" * 9000,
    "backticks": "` a" * 3000,
    "backslashes": "\\" * 9000,
    "ampersands": "&" * 9000,
    "dollars": "$a " * 3000,
    "equals": "=" * 9000,
    "quotes": ">" * 9000,
    "quotes in quotes": "> " * 4000,
    "items in items": "- " * 4000,
    "empty lines": "\n" * 9000,
    "spaces": " " * 9000,
    "tabs": "\t" * 3000,
    "columns": "|a" * 4000 + "|\n" + "|-" * 4000 + "|\n",
    "rows": "|a|\n|-|\n" + "|b|\n" * 3000,
    "definitions": "[a]: /u\n" * 2000,
    "one word": "a" * 20000,
    "open strings": "```py\n" + "x = '''a\n" * 2000,
    "open comments": "```c\n" + "/* a\n" * 2000,
    "a long line of code": "```js\n" + "x=1;" * 4000,
    "headings": "# " * 4000,
    "control strings": "\x1b]0;" + "a" * 20000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_floods_cost_what_their_length_costs(flood: str) -> None:
    """Twice the flood, about twice the time; a bound that is far from both."""

    def seconds(text: str) -> float:
        display = Display(THEME, lambda: (80, 24))
        began = time.process_time()
        for at in range(0, len(text), 100):
            display.frame(text[at : at + 100])
        display.close()
        return time.process_time() - began

    half, whole = seconds(flood[: len(flood) // 2]), seconds(flood)
    for _ in range(3):  # a busy machine may slow one of them down
        if whole < max(0.5, 3.2 * half):
            break
        half, whole = min(half, seconds(flood[: len(flood) // 2])), min(whole, seconds(flood))
    assert whole < max(0.5, 3.2 * half)
    assert whole < 5


def test_a_flood_of_marks_is_cut() -> None:
    assert len(sanitize("a" + "\u0301" * 1000)) == 17
    assert len(sanitize("a\u0301" * 1000)) == 2000
    flag = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
    assert sanitize(flag * 3) == flag * 3


def test_invalid_text_is_replaced() -> None:
    assert lines("a\ud800b") == ["a\ufffdb"]
