"""Puts a chat together: its session, its prompt, and the model, which loads meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from shlex import quote

from xverse_cli.chat.completion import CommandCompleter
from xverse_cli.chat.conversation import Conversation
from xverse_cli.chat.input import MessageSource, TerminalPrompt, message_source
from xverse_cli.chat.loading import BackgroundLoad, Models
from xverse_cli.chat.repl import Repl
from xverse_cli.chat.sessions.folder import find_session, latest_session
from xverse_cli.chat.sessions.reading import SavedSession
from xverse_cli.chat.sessions.recorder import Recorder
from xverse_cli.chat.toolbar import Toolbar
from xverse_cli.chat.turn import TurnRunner
from xverse_cli.chat.welcome import first_welcome, welcome
from xverse_cli.generation import sampling_params
from xverse_cli.host import Host, Loaded
from xverse_cli.messages import text
from xverse_cli.models.offer import find_or_fetch
from xverse_cli.render.live import rewraps
from xverse_cli.render.stream import reply_sink
from xverse_cli.report import report_model
from xverse_cli.settings import Settings
from xverse_cli.streams import QUIET
from xverse_runtime.errors import UsageError
from xverse_runtime.types import SamplingParams

_REFRESH_EVERY_S = 0.25


def prepare(flags: Mapping[str, object], host: Host) -> Chat:
    """Everything but the model.

    Raises:
        XverseError: settings, session or model are not as they should be.
    """
    settings = host.settings(flags)
    saved = _wanted_session(flags)
    if saved is not None and saved.asked_for and not flags.get("model"):
        settings = replace(settings, model=saved.asked_for)
    return Chat(settings, flags, saved, host)


def _wanted_session(flags: Mapping[str, object]) -> SavedSession | None:
    go_on, resume = flags.get("go_on"), flags.get("resume")
    if go_on and resume:
        raise UsageError("session.two_wanted")
    if resume:
        return find_session(str(resume))
    return latest_session() if go_on else None


class Chat:
    """A chat from the first prompt to the last.

    Args:
        saved: the session to go on with.
    """

    def __init__(
        self,
        settings: Settings,
        flags: Mapping[str, object],
        saved: SavedSession | None,
        host: Host,
    ) -> None:
        streams = host.streams
        self._host, self._settings, self._saved = host, settings, saved
        self._source = self._make_source(settings)
        conversation = saved.conversation if saved else Conversation(settings.system)
        enabled = self.interactive or saved is not None if settings.save is None else settings.save
        # A conversation that is not saved is no remark that -q could keep back.
        loudly = streams.warn if streams.verbosity > QUIET else streams.error
        recorder = Recorder(conversation, loudly, enabled=enabled)
        if saved is not None and enabled:
            recorder.resume(saved)
        if saved is not None and flags.get("system"):
            conversation.system = settings.system
            recorder.system()
        self._found = find_or_fetch(settings, host)
        self._models = Models(host)
        self._runner = TurnRunner(
            self._models.current,
            conversation,
            self._sampling,
            streams,
            lambda: reply_sink(streams, host.environ, settings.markdown),
            limit_chosen=settings.max_tokens is not None,
            recorder=recorder,
            overflow=settings.overflow,
        )
        self._repl = Repl(self._runner, self._source, host, settings=settings, models=self._models)

    @property
    def interactive(self) -> bool:
        """Whether somebody sits at a prompt."""
        return self._source.interactive

    @property
    def failed_turns(self) -> int:
        return self._repl.failed_turns

    def talk(self) -> None:
        """Load the model, and talk until the user leaves; raises what `Repl.run` raises."""
        if self.interactive:
            first_welcome(self._host.streams)
        if self._saved is not None:
            self._repl.resumed(self._saved, shown=self.interactive)
        source = self._source
        if not isinstance(source, TerminalPrompt) or not source.can_write_above:
            self._introduce(self._models.change(self._settings, self._found))
            self._repl.run()
        else:
            load = self._load(source)
            try:
                self._repl.run()
            finally:
                source.close()
                load.abandon()
        recorder = self._runner.recorder
        if self.interactive and recorder.saving:
            named = quote(recorder.name or recorder.id)  # for the shell: names have spaces
            self._host.streams.say(text("session.goodbye", session=named))

    def _sampling(self) -> SamplingParams:
        return sampling_params(self._models.engine().default_sampling, self._settings)

    def _make_source(self, settings: Settings) -> MessageSource:
        self._toolbar = Toolbar()
        return message_source(
            self._host.streams,
            editing=settings.editing,
            completer=CommandCompleter(lambda: self._repl),
            toolbar=self._toolbar.line,
            before=self._update_toolbar,
            keeps_history=settings.save is not False,
            rewraps=rewraps(self._host.environ),
        )

    def _update_toolbar(self) -> None:
        self._toolbar.update(self._repl)

    def _load(self, source: TerminalPrompt) -> BackgroundLoad:
        """Begin to load the model, while the prompt is there already."""
        refresh = _Seldom(lambda: self._refresh(source))
        load = BackgroundLoad(
            self._host, self._settings, self._found, refresh, lambda: self._arrived(load, source)
        )

        def introduce(loaded: Loaded) -> None:
            for warning in load.warnings:
                self._host.streams.warn(warning)
            self._introduce(loaded)

        self._models.await_first(load, introduce)
        load.start()
        return load

    def _refresh(self, source: TerminalPrompt) -> None:
        self._update_toolbar()
        source.refresh()

    def _arrived(self, load: BackgroundLoad, source: TerminalPrompt) -> None:
        """Called by the thread that loads."""
        if load.failure is not None:
            source.stop(load.failure)
            return
        source.notify(self._models.wait)
        source.notify(self._update_toolbar)

    def _introduce(self, loaded: Loaded) -> None:
        streams = self._host.streams
        report_model(loaded, streams)
        self._repl.note_model()
        welcome(loaded.engine, self._settings.model, streams, interactive=self.interactive)


class _Seldom:
    """Does something, but not as often as it is asked to."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._next = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REFRESH_EVERY_S
            self._do()
