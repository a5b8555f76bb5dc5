"""The fenced code blocks of a Markdown text."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def code_blocks(markdown: str) -> list[str]:
    """The content of each block, in order; one that is never closed reaches to the end."""
    blocks: list[str] = []
    lines: list[str] | None = None
    fence = ""
    for line in markdown.split("\n"):
        match = _FENCE.fullmatch(line)
        if lines is None:
            if match and not (match[1][0] == "`" and "`" in match[2]):
                fence, lines = match[1], []
        elif match and match[1].startswith(fence) and not match[2].strip():
            blocks.append("\n".join(lines))
            lines = None
        else:
            lines.append(line)
    if lines is not None:
        blocks.append("\n".join(lines))
    return blocks
