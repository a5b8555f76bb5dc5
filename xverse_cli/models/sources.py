"""Which source a model comes from, and which one takes over when it does not answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

from xverse_cli.models.download.huggingface import HuggingFace
from xverse_cli.models.download.modelscope import ModelScope
from xverse_cli.models.download.patience import Patience
from xverse_cli.models.download.remote import (
    Location,
    RemoteFile,
    RemoteModel,
    Source,
    UnreachableError,
)
from xverse_cli.models.download.transfer import Note
from xverse_cli.settings import modelscope_endpoint
from xverse_runtime.errors import ModelNotFoundError, XverseError


def chosen_sources(wish: str, environ: Mapping[str, str], patience: Patience) -> list[Source]:
    """The sources to ask, in order."""
    every: dict[str, Source] = {
        "huggingface": HuggingFace(patience),
        "modelscope": ModelScope(modelscope_endpoint(environ), patience),
    }
    return list(every.values()) if wish == "auto" else [every[wish]]


class Route:
    """Where the files of one model come from.

    Args:
        sources: in the order to ask them.
        repo, revision: what is wanted.
        note: told when a source is passed over.
        asking: told which source is being asked.

    Raises:
        ModelNotFoundError: the first source that answers does not have it, or none answers.
    """

    def __init__(
        self,
        sources: list[Source],
        repo: str,
        revision: str,
        note: Callable[[Note], None],
        asking: Callable[[Source], None] = lambda source: None,
    ) -> None:
        self._lock = Lock()
        first: XverseError | None = None
        for index, source in enumerate(sources):
            asking(source)
            try:
                model = source.describe(repo, revision)
            except UnreachableError as error:
                first = _of_both(first, error) if first else error
                if index + 1 < len(sources):
                    note(_passed_over(source, sources[index + 1], error))
                continue
            except ModelNotFoundError as error:
                # what counts is why the source that the user wanted first was of no use
                raise first or error from None
            self.source, self.model = source, model
            self._rest = sources[index + 1 :]
            self._described: list[tuple[Source, RemoteModel]] = [(source, model)]
            return
        assert first is not None
        raise first

    def at_commit(self, commit: str) -> bool:
        """Take the model at another commit, if its source still has that."""
        try:
            model = self.source.describe(self.model.repo, commit)
        except XverseError:
            return False
        if model.commit != commit:
            return False
        branch = self.model.revision
        self.model = RemoteModel(model.repo, branch, commit, model.files, model.licence)
        self._described[0] = (self.source, self.model)
        return True

    def locate(self, file: RemoteFile, index: int) -> Location | None:
        """Where the n-th source has the same bytes; ``None`` when there is no such one."""
        with self._lock:
            while len(self._described) <= index and self._rest:
                source = self._rest.pop(0)
                try:
                    self._described.append(
                        (source, source.describe(self.model.repo, self.model.revision))
                    )
                except XverseError:
                    continue
            if index >= len(self._described):
                return None
            source, model = self._described[index]
        if index == 0:
            return source.locate(model, file)
        same = file.sha256 and [one for one in model.files if one.sha256 == file.sha256]
        return source.locate(model, same[0]) if same else None


def _of_both(first: XverseError, then: XverseError) -> XverseError:
    """What counts is why the first source was of no use; but where both cannot be reached, that
    has been said of the first when it was passed over."""
    if not first.code == then.code == "pull.unreachable":
        return first
    name, detail = then.params["name"], then.params["detail"]
    return UnreachableError("pull.unreachable_too", name=name, detail=detail)


def _passed_over(source: Source, following: Source, error: XverseError) -> Note:
    facts = {"source": source.name, "other": following.name}
    detail = str(error.params.get("detail") or error.code)
    return Note("pull.falling_back", {**facts, "endpoint": source.endpoint, "detail": detail})
