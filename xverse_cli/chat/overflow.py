"""What happens when a conversation no longer fits its context. Nothing goes without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xverse_cli.chat.conversation import Conversation, Turn
from xverse_cli.chat.fit import Fitted, fit
from xverse_cli.chat.summary import summary_message, summary_params, summary_prompt
from xverse_cli.generation import Reply, run_generation
from xverse_cli.messages import text
from xverse_cli.settings import Overflow
from xverse_cli.streams import Streams
from xverse_runtime.errors import ContextOverflowError
from xverse_runtime.types import CancelFlag, SamplingParams, TextGenerator

_MOST_NAMED = 5


class TurnUnderWay(Protocol):
    """What is to be answered; ``context`` and ``prompt_ids`` change here."""

    context: Conversation
    user: str
    partial: str
    prompt_ids: Sequence[int]
    cancel: CancelFlag


def make_room(
    turn: TurnUnderWay,
    policy: Overflow,
    engine: TextGenerator,
    params: SamplingParams,
    streams: Streams,
) -> bool:
    """Set the turn's prompt so that a reply fits behind it; says what that costs.

    Returns:
        Whether to go on: false when the user stopped a summary.

    Raises:
        ContextOverflowError: ``context.overflow``: the message is too long by itself;
            ``context.conversation_full``: turns would have to go, and may not.
    """
    fitted = _fit(turn, engine, params)
    if fitted.dropped and policy == "error":
        raise ContextOverflowError(
            "context.conversation_full",
            prompt_tokens=fitted.whole_tokens,
            context_length=engine.context_length,
        )
    if fitted.dropped and policy == "summarise":
        if not _summarise(turn, fitted.dropped, engine, params, streams):
            return False
        fitted = _fit(turn, engine, params)
    if fitted.dropped:
        _say_dropped(turn.context, fitted, streams)
        turn.context.drop_oldest(fitted.dropped)
    turn.prompt_ids = fitted.prompt_ids
    return True


def _fit(turn: TurnUnderWay, engine: TextGenerator, params: SamplingParams) -> Fitted:
    return fit(
        turn.context,
        turn.user,
        engine.encode_chat,
        context_length=engine.context_length,
        max_new_tokens=params.max_new_tokens,
        partial=turn.partial,
    )


def _summarise(
    turn: TurnUnderWay,
    dropped: int,
    engine: TextGenerator,
    params: SamplingParams,
    streams: Streams,
) -> bool:
    """Let a summary stand for the oldest turns; where there can be none, they are left in."""
    context = turn.context
    # With the summary in their place, as many turns as before may be too many again.
    count = min(dropped + 1, len(context.turns))
    ids = summary_prompt(context, count, engine)
    if ids is None:
        count = dropped
        ids = summary_prompt(context, count, engine)
    if ids is None:
        streams.warn(text("chat.no_summary"))
        return True
    total, which = len(context.turns), _named(context, count)
    streams.warn(text("chat.summarising", turns=count, total=total, which=which))
    reply = Reply()
    asked = summary_params(params, engine.context_length)
    run_generation(engine, ids, asked, turn.cancel, lambda _piece: None, reply)
    if turn.cancel.is_set():
        return False
    summary = summary_message(reply)
    if not summary:
        streams.warn(text("chat.no_summary"))
        return True
    context.drop_oldest(count)
    context.summary = summary
    streams.say(summary)
    return True


def _say_dropped(context: Conversation, fitted: Fitted, streams: Streams) -> None:
    streams.warn(
        text(
            "chat.dropping",
            turns=fitted.dropped,
            total=len(context.turns),
            tokens=fitted.dropped_tokens,
            which=_named(context, fitted.dropped),
        )
    )


def _named(context: Conversation, count: int) -> str:
    """The oldest turns, by number and first words."""
    names = [_name(len(context.left_out) + at, context.turns[at]) for at in range(count)]
    if count > _MOST_NAMED:
        names[_MOST_NAMED - 1 : -1] = ["…"]
    return ", ".join(names)


def _name(at: int, turn: Turn) -> str:
    words = " ".join(turn.user.split())
    return text("chat.turn_named", number=at + 1, words=words[:30] + ("…" if words[30:] else ""))
