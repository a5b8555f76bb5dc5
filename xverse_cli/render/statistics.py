"""One line about how a reply was made."""

from __future__ import annotations

from collections.abc import Sequence

from xverse_cli.messages import text
from xverse_runtime.types import Pass, Timings, Usage


def statistics_line(usage: Usage, timings: Timings, passes: Sequence[Pass] = ()) -> str:
    """Tokens, rate, time to the first token and what the cache and the lookup saved."""
    line = text(
        "statistics.line",
        tokens=usage.completion_tokens,
        rate=f"{timings.decode_tokens_per_s:.1f}",
        ttft=f"{timings.ttft_s:.2f}",
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens,
    )
    proposed = sum(one.proposed for one in passes)
    if not proposed:
        return line
    accepted = sum(one.accepted for one in passes)
    return line + text("statistics.lookup", accepted=accepted, proposed=proposed)
