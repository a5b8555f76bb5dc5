"""What `-v` says on stderr about a model and a reply, and what every user should know."""

from __future__ import annotations

from xverse_cli.generation import Reply
from xverse_cli.host import Loaded
from xverse_cli.messages import detail, figure, text
from xverse_cli.render.statistics import statistics_line
from xverse_cli.streams import Streams
from xverse_runtime.types import TemplateChoice, TextGenerator

_REASONS = {
    "template.requested",
    "template.tokenizer_config",
    "template.jinja_file",
    "template.modeling_file",
    "template.chat_name",
    "template.base_model",
}


def report_model(loaded: Loaded, streams: Streams) -> None:
    """How the model was loaded: template, device, precision and why."""
    engine = loaded.engine
    streams.say(text("load.done", model=engine.model_name, seconds=f"{loaded.load_s:.1f}"), level=1)
    streams.say(template_line(engine.template_choice), level=1)
    for note in engine.notes:
        streams.say(detail(note), level=1)
    expected = engine.forecast(engine.context_length)
    if expected is not None:
        rate, first = figure(expected.tokens_per_s), f"{expected.first_token_s:.1f}"
        streams.say(
            text("load.forecast", rate=rate, prompt=expected.prompt_tokens, seconds=first), level=1
        )


def report_reply(
    reply: Reply, engine: TextGenerator, streams: Streams, *, limit_chosen: bool
) -> None:
    """Why a reply ended before the model was done, and its statistics.

    Args:
        limit_chosen: the user chose the limit, so that reaching it is no news.
    """
    last = reply.last
    if last.truncated:
        streams.warn(text("reply.truncated", context_length=engine.context_length))
    elif last.finish_reason == "length":
        streams.say(
            text("reply.length", tokens=len(reply.token_ids)), level=1 if limit_chosen else 0
        )
    streams.say(statistics_line(last.usage, last.timings, last.passes), level=1)
    if (line := forecast_line(reply, engine)) is not None:
        streams.say(line, level=1)


def forecast_line(reply: Reply, engine: TextGenerator) -> str | None:
    """What was predicted of a reply beside what it took; hit rates are those since the start."""
    usage, measured = reply.last.usage, reply.last.timings.decode_tokens_per_s
    expected = engine.forecast(usage.prompt_tokens + usage.completion_tokens)
    if expected is None or not measured:
        return None
    rates = (expected.tokens_per_s, measured)
    predicted, found = map(figure, rates)
    line = text("statistics.forecast", predicted=predicted, measured=found)
    statistics = engine.offload_statistics
    if statistics is None or statistics.hit_rate is None:
        return line
    predicted, found = (f"{rate:.2f}" for rate in (expected.hit_rate, statistics.hit_rate))
    return line + text("statistics.hit_rate", predicted=predicted, measured=found)


def template_line(choice: TemplateChoice) -> str:
    """Which chat template is used, and why."""
    key = choice.reason if choice.reason in _REASONS else "template.other_reason"
    reason = text(key, reason=choice.reason, source=choice.source)
    return text("template.chosen", name=choice.name, reason=reason)
