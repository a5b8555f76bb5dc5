"""One turn of the conversation: a message goes in, a reply comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from xverse_cli.chat.conversation import Conversation, Turn
from xverse_cli.chat.fit import fit
from xverse_cli.generation import Reply, run_generation
from xverse_cli.interrupts import Terminated, cancel_on_signal
from xverse_cli.messages import text
from xverse_cli.render.stream import TokenSink
from xverse_cli.report import report_reply
from xverse_cli.streams import Streams
from xverse_runtime.types import CancelFlag, SamplingParams, TextGenerator

Outcome = Literal["done", "interrupted", "nothing"]


class TurnRunner:
    """Answers messages of one conversation.

    Args:
        make_sink: gives each reply its own sink.
        limit_chosen: the user chose how long a reply may be.
    """

    def __init__(
        self,
        engine: TextGenerator,
        conversation: Conversation,
        params: SamplingParams,
        streams: Streams,
        make_sink: Callable[[], TokenSink],
        *,
        limit_chosen: bool = False,
    ) -> None:
        self.engine = engine
        self.conversation = conversation
        self._params = params
        self._streams = streams
        self._make_sink = make_sink
        self._limit_chosen = limit_chosen

    def run(self, user: str, *, attempt: int = 0) -> Outcome:
        """Answer ``user`` and add the turn to the conversation.

        Args:
            attempt: how often this message was answered before; a fixed seed moves on by it,
                since the same seed would only repeat the reply.

        Returns:
            ``interrupted`` when a partial reply was kept, ``nothing`` when it was stopped before
            it began: then the conversation is as it was.

        Raises:
            XverseError: the turn failed; the conversation is as it was.
        """
        reply, cancel = Reply(), CancelFlag()
        with cancel_on_signal(cancel, second_kills=False):
            dropped = self._answer(user, self._params_of(attempt), cancel, reply)
        interrupted = reply.finish_reason == "interrupted"
        if interrupted and not reply.text:
            return "nothing"
        self.conversation.drop_oldest(dropped)
        self.conversation.add(Turn(user, reply.text, interrupted))
        if not reply.text.strip():
            self._streams.say(text("chat.empty_reply"))
        report_reply(reply, self.engine, self._streams, limit_chosen=self._limit_chosen)
        return "interrupted" if interrupted else "done"

    def _answer(self, user: str, params: SamplingParams, cancel: CancelFlag, reply: Reply) -> int:
        """Generate into ``reply``; how many turns had to be left out."""
        fitted = fit(
            self.conversation,
            user,
            self.engine.encode_chat,
            context_length=self.engine.context_length,
            max_new_tokens=params.max_new_tokens,
        )
        if fitted.dropped:
            turns = len(self.conversation.turns)
            self._streams.warn(
                text(
                    "chat.dropping",
                    turns=fitted.dropped,
                    total=turns,
                    tokens=fitted.dropped_tokens,
                )
            )
        sink = self._make_sink()
        try:
            run_generation(self.engine, fitted.prompt_ids, params, cancel, sink.write, reply)
        except KeyboardInterrupt as error:  # a second Ctrl-C: do not wait for the engine
            if isinstance(error, Terminated):
                raise
        finally:
            if reply.text or reply.finish_reason != "interrupted":
                sink.close()
        return fitted.dropped

    def _params_of(self, attempt: int) -> SamplingParams:
        seed = self._params.seed
        return self._params if seed is None else replace(self._params, seed=seed + attempt)
