"""One turn of the conversation: a message goes in, a reply comes out."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from xverse_cli.chat.conversation import Conversation, Made, Turn
from xverse_cli.chat.overflow import make_room
from xverse_cli.chat.sessions.recorder import Recorder
from xverse_cli.generation import Reply, run_generation, sampling_settings
from xverse_cli.interrupts import Terminated, cancel_on_signal
from xverse_cli.messages import text
from xverse_cli.render.stream import TokenSink
from xverse_cli.report import report_reply
from xverse_cli.settings import Overflow
from xverse_cli.streams import Streams
from xverse_runtime.types import CancelFlag, SamplingParams, TextGenerator

Outcome = Literal["done", "interrupted", "nothing"]


class TurnRunner:
    """Answers messages of one conversation.

    Args:
        params: the sampling settings, or how to get them once the engine is there.
        make_sink: gives each reply its own sink.
        limit_chosen: the user chose how long a reply may be.
        recorder: told each message before it is answered and each turn before this returns.
        overflow: what to do when the conversation no longer fits.
    """

    def __init__(
        self,
        engine: TextGenerator,
        conversation: Conversation,
        params: SamplingParams | Callable[[], SamplingParams],
        streams: Streams,
        make_sink: Callable[[], TokenSink],
        *,
        limit_chosen: bool = False,
        recorder: Recorder | None = None,
        overflow: Overflow = "trim",
    ) -> None:
        self.engine = engine
        self.conversation = conversation
        self.recorder = recorder or Recorder(conversation, streams.warn, enabled=False)
        self.overflow: Overflow = overflow
        self.limit_chosen = limit_chosen
        self.last: Reply | None = None  # the last reply, for statistics
        self._params = params
        self._streams = streams
        self._make_sink = make_sink

    @property
    def params(self) -> SamplingParams:
        """The sampling settings in effect."""
        if not isinstance(self._params, SamplingParams):
            self._params = self._params()
        return self._params

    @params.setter
    def params(self, params: SamplingParams | Callable[[], SamplingParams]) -> None:
        self._params = params

    def run(
        self, user: str, *, attempt: int = 0, at: int | None = None, partial: Turn | None = None
    ) -> Outcome:
        """Answer ``user`` and add the turn to the conversation.

        Args:
            attempt: how often this message was answered before; a fixed seed moves on by it,
                since the same seed would only repeat the reply.
            at: the turn's place in the whole conversation; what stands there and after it goes
                once there is a reply. By default the end.
            partial: a turn whose reply is to be gone on with; then ``user`` and ``at`` are its.

        Returns:
            ``interrupted`` when a partial reply was kept, ``nothing`` when it was stopped before
            it began: then the conversation is as it was.

        Raises:
            XverseError: the turn failed; the conversation is as it was.
            KeyboardInterrupt: `Terminated`, after what was said so far was kept.
            OSError: the reply could not be shown; what was said so far was kept.
        """
        turn = _OneTurn(self.conversation.copy(), user, partial.assistant if partial else "")
        if at is not None:
            turn.context.keep(at)
        if partial is None:
            self.recorder.message(user)
        with cancel_on_signal(turn.cancel, second_kills=False):
            try:
                if not self._make_room(turn, at is None):
                    return "nothing"
                self._answer(turn, self._params_of(attempt))
            except (OSError, KeyboardInterrupt) as error:
                self._keep(turn, partial)
                # A second Ctrl-C only means: do not wait for the engine.
                if isinstance(error, (OSError, Terminated)):
                    raise
            else:
                self._keep(turn, partial)
        return self._outcome(turn)

    def rehearse(
        self, context: Conversation, user: str, made: Made, params: SamplingParams
    ) -> tuple[bool, Reply]:
        """Make a reply again as ``made`` says; the conversation stays as it is.

        Args:
            context: what stood before the message.

        Returns:
            Whether the prompt is the same as then, and the reply.
        """
        turn = _OneTurn(context, user, "")
        turn.prompt_ids = self.engine.encode_chat(context.messages(user))
        with cancel_on_signal(turn.cancel, second_kills=False):
            try:
                self._answer(turn, params)
            except KeyboardInterrupt as error:
                if isinstance(error, Terminated):
                    raise
        self.last = turn.reply
        return digest(turn.prompt_ids) == made.prompt_digest, turn.reply

    def _make_room(self, turn: _OneTurn, at_end: bool) -> bool:
        """Fit the turn's context; whether the reply is still wanted afterwards."""
        wanted = make_room(turn, self.overflow, self.engine, self.params, self._streams)
        if at_end and turn.context.summary != self.conversation.summary:
            self.conversation.become(turn.context)  # a summary stays made, whatever comes now
        return wanted

    def _answer(self, turn: _OneTurn, params: SamplingParams) -> None:
        turn.params = params
        reply, sink = turn.reply, self._make_sink()
        try:
            run_generation(self.engine, turn.prompt_ids, params, turn.cancel, sink.write, reply)
        finally:
            if reply.text or reply.finish_reason != "interrupted":
                sink.close()

    def _keep(self, turn: _OneTurn, partial: Turn | None) -> None:
        """Make what was said part of the conversation, and put it on disk."""
        reply = turn.reply
        interrupted = reply.finish_reason == "interrupted"
        if interrupted and not reply.text:
            return
        made = self._made(turn)
        if partial is not None and partial.made is not None:
            made = replace(
                partial.made,
                finish=made.finish,
                completion_tokens=partial.made.completion_tokens + made.completion_tokens,
                continued=True,
            )
        words = turn.partial + reply.text
        turn.context.add(Turn(turn.user, words, interrupted, made))
        self.conversation.become(turn.context)
        self.recorder.turn()

    def _made(self, turn: _OneTurn) -> Made:
        engine, reply = self.engine, turn.reply
        return Made(
            model=engine.model_name,
            template=engine.template_choice.name,
            settings=sampling_settings(turn.params, reply.last.seed),
            prompt_tokens=len(turn.prompt_ids),
            prompt_digest=digest(turn.prompt_ids),
            completion_tokens=len(reply.token_ids),
            finish=reply.finish_reason,
            device=engine.device,
            precision=engine.precision,
            system=turn.context.system,
            summary=turn.context.summary,
            left_out=len(turn.context.left_out),
        )

    def _outcome(self, turn: _OneTurn) -> Outcome:
        reply = turn.reply
        if reply.finish_reason == "interrupted" and not reply.text:
            return "nothing"
        self.last = reply
        if not reply.text.strip():
            self._streams.say(text("chat.empty_reply"))
        report_reply(reply, self.engine, self._streams, limit_chosen=self.limit_chosen)
        return "interrupted" if reply.finish_reason == "interrupted" else "done"

    def _params_of(self, attempt: int) -> SamplingParams:
        seed = self.params.seed
        return self.params if seed is None else replace(self.params, seed=seed + attempt)


class _OneTurn:
    """A turn under way.

    Args:
        context: what stands before it: a copy, for it may come to nothing.
        partial: how the reply begins.
    """

    def __init__(self, context: Conversation, user: str, partial: str) -> None:
        self.context = context
        self.user = user
        self.partial = partial
        self.prompt_ids: Sequence[int] = ()
        self.params = SamplingParams()
        self.reply = Reply()
        self.cancel = CancelFlag()


def digest(prompt_ids: Sequence[int]) -> str:
    """Tells one prompt from another."""
    return hashlib.sha256(array("q", prompt_ids).tobytes()).hexdigest()[:16]
