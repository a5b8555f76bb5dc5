"""`/stats`: how the last reply was made, and what the engine tells about itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xverse_cli.chat.context import used_tokens
from xverse_cli.generation import Reply
from xverse_cli.messages import text
from xverse_cli.report import forecast_line
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.types import EngineStatistics, TextGenerator

if TYPE_CHECKING:
    from xverse_cli.chat.repl import Repl

_LEVELS = "▁▂▃▄▅▆▇█"


def engine_statistics(engine: TextGenerator) -> EngineStatistics:
    """What an engine tells; nothing, if it is one that tells nothing."""
    tell = getattr(engine, "statistics", None)
    found = tell() if callable(tell) else None
    return found if isinstance(found, EngineStatistics) else EngineStatistics()


def statistics_lines(chat: Repl) -> list[str]:
    engine = chat.engine
    told = engine_statistics(engine)
    lines = [
        text(
            "stats.model",
            model=engine.model_name,
            device=engine.device,
            precision=engine.precision,
        ),
        text(
            "stats.context",
            used=used_tokens(chat.conversation, engine),
            limit=engine.context_length,
        ),
    ]
    lines += _reply_lines(chat.runner.last, engine)
    lines += [text(f"stats.memory_{part}", size_bytes=taken) for part, taken in told.memory]
    return lines + _expert_lines(told.expert_load)


def _reply_lines(reply: Reply | None, engine: TextGenerator) -> list[str]:
    if reply is None:
        return [text("stats.no_reply")]
    usage, timings = reply.last.usage, reply.last.timings
    lines = [
        text("stats.ttft", seconds=f"{timings.ttft_s:.2f}"),
        text(
            "stats.prefill",
            rate=f"{timings.prefill_tokens_per_s:.1f}",
            tokens=usage.prompt_tokens - usage.cached_tokens,
            cached=usage.cached_tokens,
        ),
        text(
            "stats.decode",
            rate=f"{timings.decode_tokens_per_s:.1f}",
            tokens=usage.completion_tokens,
        ),
    ]
    line = forecast_line(reply, engine)
    if line is not None:
        lines.append(line)
    if engine.offload_statistics is not None:
        lines += _offload_lines(engine.offload_statistics)
    return lines


def _offload_lines(done: OffloadStatistics) -> list[str]:
    """Since the start: who computed experts, what crossed the link, and what tokens waited for."""
    lines = []
    if done.uses:
        shares = (100 * part / done.uses for part in (done.hits, done.on_cpu, done.over_link))
        on_gpu, on_cpu, crossed = (f"{share:.1f}" for share in shares)
        lines.append(text("stats.paths", gpu=on_gpu, cpu=on_cpu, link=crossed))
    lines.append(
        text(
            "stats.crossed",
            waited_bytes=done.critical_bytes,
            background_bytes=done.background_bytes,
            prompt_bytes=done.prompt_bytes,
        )
    )
    if done.tokens:
        causes = (done.choice_s, done.cpu_s, done.link_s, done.coordination_s)
        gpu, cpu, link, host = (f"{1000 * one / done.tokens:.2f}" for one in causes)
        lines.append(text("stats.waits", gpu=gpu, cpu=cpu, link=link, host=host))
    if done.disk_s:
        lines.append(text("stats.disk", seconds=f"{done.disk_s:.1f}"))
    if done.prefetched:
        used = round(100 * done.prefetched_used / done.prefetched)
        lines.append(text("stats.prefetched", count=done.prefetched, percent=used))
    return lines


def _expert_lines(load: Sequence[Sequence[int]]) -> list[str]:
    """How evenly the experts worked: a bar for each, summed over the layers."""
    totals = [sum(column) for column in zip(*load, strict=True)]
    if not any(totals):
        return []
    busiest, mean = max(totals), sum(totals) / len(totals)
    return [
        text("stats.experts", bars=bars(totals)),
        text(
            "stats.evenness",
            most=f"{busiest / mean:.2f}",
            least=f"{min(totals) / mean:.2f}",
            layers=len(load),
        ),
    ]


def bars(values: Sequence[int]) -> str:
    """A small bar chart in one line, from nothing to the largest value."""
    largest = max(values)
    return "".join(
        " " if value == 0 else _LEVELS[min(7, (8 * value - 1) // largest)] for value in values
    )
