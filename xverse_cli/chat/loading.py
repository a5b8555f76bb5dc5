"""Loads models: the first one while the user is already typing, others when asked for."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from xverse_cli.host import Host, Loaded
from xverse_cli.messages import text
from xverse_cli.render.progress import byte_bar
from xverse_cli.settings import Settings
from xverse_runtime.types import LoadProgress, TextGenerator

if TYPE_CHECKING:
    from xverse_cli.models.find import FoundModel

_LOOK_EVERY_S = 0.1
_END_WITHIN_S = 5.0


class LoadFailedError(Exception):
    """The model of this chat could not be loaded: nothing can be answered.

    Args:
        cause: why.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _AbandonedError(Exception):
    """Raised where loading reports progress, when nobody waits for the model any more."""


class BackgroundLoad:
    """A model that is being loaded by a thread.

    Args:
        on_progress: called by that thread now and then.
        on_end: called by it when the model is there, or will not come.
    """

    def __init__(
        self,
        host: Host,
        settings: Settings,
        model: FoundModel,
        on_progress: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.progress = LoadProgress(0, 0)
        self.warnings: list[str] = []
        self.failure: LoadFailedError | None = None
        self._host, self._settings, self._model = host, settings, model
        self._on_progress, self._on_end = on_progress, on_end
        self._result: Loaded | None = None
        self._done = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def result(self) -> Loaded:
        """Wait for the model, with a bar where someone is watching.

        Raises:
            LoadFailedError: it could not be loaded.
            KeyboardInterrupt: Ctrl-C; loading goes on.
        """
        if not self.done:
            description = text("load.progress", model=self._settings.model)
            with byte_bar(description, self._host.watched_stderr) as show:
                while not self._done.wait(_LOOK_EVERY_S):
                    show(self.progress)
        if self._result is None:
            assert self.failure is not None
            raise self.failure
        return self._result

    def abandon(self) -> None:
        """Nobody wants the model any more: end the thread, as soon as it looks up."""
        self._abandoned = True
        if self._thread.is_alive():
            self._thread.join(_END_WITHIN_S)

    def _run(self) -> None:
        try:
            self._result = self._host.load_found(
                self._settings, self._model, self._advance, self.warnings.append
            )
        except BaseException as error:
            self.failure = LoadFailedError(error)
        self._done.set()
        if not self._abandoned:
            self._on_end()

    def _advance(self, progress: LoadProgress) -> None:
        if self._abandoned:
            raise _AbandonedError
        self.progress = progress
        self._on_progress()


class Models:
    """The model of a chat: the first one, perhaps still loading, and any that replaces it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loading: BackgroundLoad | None = None
        self._introduce: Callable[[Loaded], None] = lambda _loaded: None
        self._engine: TextGenerator | None = None

    def await_first(self, load: BackgroundLoad, introduce: Callable[[Loaded], None]) -> None:
        """Take the first model from a thread.

        Args:
            introduce: called once by whoever waits for it first.
        """
        self._loading, self._introduce = load, introduce

    @property
    def loading(self) -> LoadProgress | None:
        """How far the first model is; ``None`` once it is there."""
        load = self._loading
        return None if load is None or load.done else load.progress

    def wait(self) -> None:
        """Return when there is a model; raises what `BackgroundLoad.result` raises."""
        if self._loading is not None:
            loaded = self._loading.result()
            self._loading = None
            self._take(loaded)
            self._introduce(loaded)

    @property
    def current(self) -> TextGenerator:
        """Whichever model is the present one, also before it is there: who uses it waits."""
        return cast(TextGenerator, _Current(self))

    def engine(self) -> TextGenerator:
        """The model itself; waits for it."""
        self.wait()
        assert self._engine is not None
        return self._engine

    def change(self, settings: Settings, found: FoundModel | None = None) -> Loaded:
        """Another model from now on. The one before is given up first: both may not fit.

        Raises:
            XverseError: it cannot be had, and now there is none.
        """
        self._engine = self._loading = None
        gc.collect()
        loaded = self._host.load_model(settings, found)
        self._take(loaded)
        return loaded

    def _take(self, loaded: Loaded) -> None:
        self._engine = loaded.engine
        # An engine of this machine can; sessions are then switched without computing them anew.
        keep = getattr(loaded.engine, "keep_conversations", None)
        if keep is not None:
            keep()


class _Current:
    """Stands for the present model."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models.engine(), name)
