"""markdown-it's flat tokens as a tree of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markdown_it.token import Token

_KINDS = {
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "list_item_open": "item",
    "blockquote_open": "quote",
    "paragraph_open": "paragraph",
    "heading_open": "heading",
    "table_open": "table",
    "fence": "fence",
    "code_block": "code",
    "maths_block": "maths",
    "hr": "rule",
}


@dataclass
class Block:
    """A block and the lines of the source ``start:end`` that it stands in.

    Args:
        token: the one that opens it.
        inline: content of a paragraph or heading; for a table, its cells in order.
        headers: what opens the cells of a table's header.
    """

    kind: str
    token: Token
    start: int
    end: int
    children: list[Block] = field(default_factory=list)
    inline: list[Token] = field(default_factory=list)
    headers: list[Token] = field(default_factory=list)

    @property
    def source(self) -> str:
        """What a paragraph or a heading consists of."""
        return self.inline[0].content if self.inline else ""


def blocks_of(tokens: Sequence[Token]) -> list[Block]:
    """The blocks at the top, with those inside them."""
    root: list[Block] = []
    open_blocks: list[Block] = []
    for token in tokens:
        kind = _KINDS.get(token.type)
        if kind is not None:
            start, end = token.map or (0, 0)
            block = Block(kind, token, start, end)
            (open_blocks[-1].children if open_blocks else root).append(block)
            if token.nesting == 1:
                open_blocks.append(block)
        elif token.type == "th_open":
            open_blocks[-1].headers.append(token)
        elif token.type == "inline":
            open_blocks[-1].inline.append(token)
        elif token.nesting == -1 and token.type.replace("_close", "_open") in _KINDS:
            open_blocks.pop()
    return root
