"""Code is highlighted line by line, as it would be as a whole."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from xverse_cli.render.markdown.code import Highlighter
from xverse_cli.render.markdown.theme import Theme, theme_of


def theme() -> Theme:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    environ = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    return theme_of(Console(file=stream, force_terminal=True, _environ=environ), links=True)


THEME = theme()


def by_line(language: str, code: str) -> list[tuple[str, str]]:
    """Characters with their looks, as the renderer shows them."""
    highlighter = Highlighter(language, THEME)
    return [
        (character, span.sgr)
        for line in code.split("\n")
        for span in highlighter.line(line)
        for character in span.text
        if character != " "
    ]


def as_a_whole(language: str, code: str) -> list[tuple[str, str]]:
    from pygments.lexers import get_lexer_by_name

    tokens = get_lexer_by_name(language, stripnl=False).get_tokens(code)
    return [
        (character, THEME.token(kind))
        for kind, text in tokens
        for character in text
        if character not in " \n"
    ]


CODE = {
    "python": """def f(x: int) -> str:
    \'\'\'Doc
    string "x".
    \'\'\'
    return f"a{x}" + 'b'  # c


class A(B):
    @property
    def g(self): ...
""",
    "c": """#include <stdio.h>
/* a
   b */
int main(void) { /* x */ return 0; }
""",
    "javascript": """/* a
 b */ const x = `a
 ${1 + 2}
`; // y
function f() { return /re/g; }
""",
    "rust": """/// doc
fn main() -> Vec<u8> { let s = "a\\
b"; vec![] }
""",
    "bash": """for f in *.txt; do
  echo "$f" 'a
b'
done
""",
    "go": """/* a
   b */
func f() { name := "x" } // c
""",
    "json": '{"a": [1, 2.5, true], "b": null}\n',
    "sql": """SELECT a, count(*) FROM t -- x
WHERE b = 'c' GROUP BY a;
""",
    "html": """<div class="a">
<!-- x
 y -->
<b>t</b></div>
""",
    "diff": """--- a
+++ b
@@ -1 +1 @@
-x
+y
""",
    "toml": """[a]
b = "c" # d
e = \'\'\'
f
\'\'\'
""",
}


@pytest.mark.parametrize("language", CODE)
def test_lines_are_highlighted_as_the_whole(language: str) -> None:
    assert by_line(language, CODE[language]) == as_a_whole(language, CODE[language])


def test_this_repository(repository: Path) -> None:
    for path in sorted((repository / "xverse_cli" / "render").rglob("*.py")):
        code = path.read_text("utf-8")
        shown, expected = by_line("python", code), as_a_whole("python", code)
        different = sum(one != other for one, other in zip(shown, expected, strict=True))
        assert different <= len(expected) / 100, path


@pytest.mark.parametrize(
    "language", ["", "no-such-language", "x" * 500, "{.python .x}", "🎉", "yaml", "html+php"]
)
def test_any_language_keeps_the_text(language: str) -> None:
    code = "a: b\n\n  'c' # d\n\t<?php echo 1 ?>\n"
    text = "".join(character for character, _ in by_line(language, code))
    assert text == "".join(code.split(" ")).replace("\n", "")


def test_a_copy_goes_on_by_itself() -> None:
    one = Highlighter("python", THEME)
    one.line('x = """a')
    other = one.copy()
    assert other.line('b"""') == one.line('b"""')
    assert other.line("def f(): pass") == one.line("def f(): pass")


def test_lexers_are_loaded_when_they_are_needed() -> None:
    import subprocess

    probe = (
        "import sys\n"
        "from xverse_cli.render.markdown.stream import MarkdownStream\n"
        "from xverse_cli.render.markdown.theme import Theme\n"
        "s = MarkdownStream(Theme({'code': '1'}), 80, 24)\n"
        "s.feed('# a\\n\\n- b `c`\\n')\n"
        "print([m for m in sys.modules if m.startswith(('pygments', 'torch', 'prompt_toolkit'))])"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
