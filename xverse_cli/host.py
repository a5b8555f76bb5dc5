"""What the commands need from outside: streams, environment, and a way to load a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO, TypeAlias

from xverse_cli.messages import text
from xverse_cli.settings import Settings, load_settings, misspelt_variables
from xverse_cli.streams import Streams
from xverse_runtime.errors import UsageError

if TYPE_CHECKING:
    from xverse_cli.models.find import FoundModel
    from xverse_runtime.types import ProgressCallback, TextGenerator

# The last but one is told, in words, what the engine gives up when memory is short; then verbosity.
Loader: TypeAlias = (
    "Callable[[FoundModel, Settings, ProgressCallback, Callable[[str], None], int], TextGenerator]"
)


def load_engine(
    model: FoundModel,
    settings: Settings,
    progress: ProgressCallback,
    warn: Callable[[str], None],
    verbosity: int,
) -> TextGenerator:
    """Load ``model`` into the engine of this machine; who wants to know more gets a forecast."""
    from xverse_runtime.config import EngineConfig
    from xverse_runtime.engine import Engine

    config = EngineConfig(
        device=settings.device,
        precision=settings.precision,
        context_length=settings.context,
        chat_template=settings.chat_template,
        kv=settings.kv,
        threads=settings.threads,
        backend=settings.backend,
        cuda_graph=settings.cuda_graph,
        lookup=settings.lookup,
        gpu_memory=settings.gpu_memory,
        cpu_memory=settings.cpu_memory,
        forecast=verbosity > 0,
    )
    return Engine.load(
        model.path,
        config,
        model_name=model.name,
        progress=progress,
        on_adjustment=lambda code, facts: warn(text(code, **facts)),
    )


@dataclass(frozen=True)
class Host:
    """The outside of one run; tests put their own in its place."""

    streams: Streams
    environ: Mapping[str, str]
    load: Loader = load_engine

    def settings(self, flags: Mapping[str, object]) -> Settings:
        """The settings in effect; says when the environment holds a likely misspelling."""
        for name, nearest in misspelt_variables(self.environ):
            self.streams.warn(text("settings.misspelt", name=name, nearest=nearest))
        return load_settings(flags, self.environ)

    @property
    def watched_stderr(self) -> TextIO | None:
        """stderr for a progress bar, where someone is watching it."""
        watched = self.streams.stderr_is_terminal and self.streams.verbosity >= 0
        return self.streams.stderr if watched else None

    def load_model(self, settings: Settings, model: FoundModel | None = None) -> Loaded:
        """Find and load the model, with a progress bar where someone is watching.

        Args:
            model: where it is, when that has been found out before.
        """
        from xverse_cli.models.offer import find_or_fetch
        from xverse_cli.render.progress import byte_bar

        model = model or find_or_fetch(settings, self)
        description = text("load.progress", model=settings.model)
        with byte_bar(description, self.watched_stderr) as progress:
            return self.load_found(settings, model, progress, self.streams.warn)

    def load_found(
        self,
        settings: Settings,
        model: FoundModel,
        progress: ProgressCallback,
        warn: Callable[[str], None],
    ) -> Loaded:
        """Load a model that was found, showing nothing.

        Args:
            progress: told how far it is.
            warn: told, in words, what the engine gives up when memory is short.
        """
        from xverse_cli.models import last_use

        started = time.perf_counter()
        try:
            engine = self.load(model, settings, progress, warn, self.streams.verbosity)
        except UsageError as error:
            if "model" in error.params:  # what to do about it, the user does by this name
                error.params["model"] = settings.model
            raise
        last_use.record(model.path)
        return Loaded(engine, time.perf_counter() - started)


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, and how long that took."""

    engine: TextGenerator
    load_s: float


@dataclass(frozen=True)
class Job:
    """What a command line asks for. Typer parses; the job runs outside it, at the error boundary,
    because Typer turns broken pipes and Ctrl-C into exit codes of its own."""

    run: Callable[[Host], int]
    verbosity: int = 0
