"""Whole chats in one call: a user who types what the test says, and the scripted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.cli.conftest import memory_stream, written
from tests.cli.fake_engine import FakeEngine
from xverse_cli.chat.conversation import Conversation, Turn
from xverse_cli.chat.repl import Repl
from xverse_cli.chat.sessions.reading import SavedSession
from xverse_cli.chat.sessions.recorder import Recorder
from xverse_cli.chat.turn import TurnRunner
from xverse_cli.host import Host
from xverse_cli.render.stream import PlainSink
from xverse_cli.settings import Overflow, Settings
from xverse_cli.streams import Streams
from xverse_runtime.types import CancelFlag, GenerationChunk, SamplingParams


class Script:
    """A user who types ``inputs`` and then presses Ctrl-D; an exception is raised instead."""

    interactive = True
    place = ""
    unsent = ""

    def __init__(self, inputs: Sequence[str | type[BaseException]]) -> None:
        self._inputs = list(inputs)
        self.prefills: list[str] = []

    def read(self, prefill: str = "") -> str:
        self.prefills.append(prefill)
        if not self._inputs:
            raise EOFError
        value = self._inputs.pop(0)
        if isinstance(value, str):
            return value
        raise value


class Chat:
    """A finished chat; ``said`` is what was said in it before."""

    def __init__(
        self,
        *inputs: str | type[BaseException],
        engine: FakeEngine | None = None,
        system: str | None = None,
        seed: int | None = None,
        said: Sequence[Turn] = (),
        overflow: Overflow = "trim",
        saves: bool = False,
        model: str = "./model",
        going_on: SavedSession | None = None,
        host: Callable[[Streams], Host] = lambda streams: Host(streams, {}),
    ) -> None:
        self.engine = engine or FakeEngine(["Reply."])
        self.script = Script(inputs)
        streams = Streams(None, memory_stream(), memory_stream())
        self.conversation = Conversation(system, list(said))
        params = SamplingParams(max_new_tokens=50, seed=seed)
        self.recorder = Recorder(self.conversation, streams.warn, enabled=saves)
        self.runner = TurnRunner(
            self.engine,
            self.conversation,
            params,
            streams,
            lambda: PlainSink(streams),
            recorder=self.recorder,
            overflow=overflow,
        )
        if said and saves:
            self.recorder.start()
        repl = Repl(self.runner, self.script, host(streams), settings=Settings(model, seed=seed))
        if going_on is not None:
            self.conversation.become(going_on.conversation)
            self.recorder.resume(going_on)
            repl.resumed(going_on)
        self.repl = repl
        repl.note_model()
        repl.run()
        self.stdout = written(streams.stdout).decode()
        self.stderr = written(streams.stderr).decode()


class Interrupted(FakeEngine):
    """Somebody presses Ctrl-C after ``after`` characters of each reply."""

    after = 3

    def _chunks(self, reply: str, prompt_tokens: int, params: SamplingParams, cancel: CancelFlag):  # type: ignore[no-untyped-def]
        for count, chunk in enumerate(super()._chunks(reply, prompt_tokens, params, cancel)):
            if count == self.after:
                cancel.set()
                yield GenerationChunk(finish_reason="interrupted")
                return
            yield chunk
