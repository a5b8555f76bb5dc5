"""What a long reply costs: as much at its end as at its beginning, and little."""

from __future__ import annotations

import time

from bench.render import COLUMNS, ROWS, frames, tokens
from tests.render.gallery import gallery_theme
from xverse_cli.render.markdown.display import Display


def test_cost_and_output_of_a_long_reply() -> None:
    """A frame for every token, the most there can be; the best runs, as others load the machine."""
    pieces = tokens(6000)
    third = len(pieces) // 3
    best = [float("inf")] * 3
    for _ in range(4):
        display = Display(gallery_theme(), lambda: (COLUMNS, ROWS))
        written = 0
        for part in range(3):
            began = time.process_time()
            for text in frames(pieces[part * third : (part + 1) * third], 30):
                written += len(display.frame(text).encode())
            best[part] = min(best[part], (time.process_time() - began) / third)
        written += len(display.close().encode())
        assert written <= 3 * len("".join(pieces).encode())
        if max(best) < 1.5 * min(best):
            break
    assert max(best) < 1.5 * min(best)
    assert max(best) < 1.5e-3  # five times what was measured, for slow and busy machines


def test_memory_does_not_grow_with_the_reply() -> None:
    """What is on the screen is forgotten."""
    display = Display(gallery_theme(), lambda: (COLUMNS, ROWS))
    sizes = []
    for number, piece in enumerate(tokens(4000)):
        display.frame(piece)
        stream = display._stream
        waiting = sum(map(len, [*stream._lines, *stream._held, stream._partial]))
        sizes.append(waiting + len(display._painter._painted))
        assert sizes[-1] < 3000, number
    assert max(sizes[2000:]) <= 1.5 * max(sizes[:2000])
