"""One line about how a reply was made."""

from __future__ import annotations

from xverse_cli.messages import text
from xverse_runtime.types import Timings, Usage


def statistics_line(usage: Usage, timings: Timings) -> str:
    """Tokens, rate, time to the first token and what the cache saved."""
    return text(
        "statistics.line",
        tokens=usage.completion_tokens,
        rate=f"{timings.decode_tokens_per_s:.1f}",
        ttft=f"{timings.ttft_s:.2f}",
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens,
    )
