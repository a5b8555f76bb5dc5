"""What a source says about a model, and what every source can do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from xverse_runtime.errors import ModelNotFoundError


class UnreachableError(ModelNotFoundError):
    """A source that does not answer, or not sensibly: another one may be tried."""


def unreachable(name: str, detail: str, *, reached: bool) -> UnreachableError:
    """Nobody answers, or (``reached``) not sensibly. ``name``: what was asked, or whom."""
    detail = detail.rstrip(".")
    if reached:
        return UnreachableError("pull.server", name=name, detail=detail)
    return UnreachableError("pull.unreachable", name=name, detail=detail)


def no_such_model(repo: str, endpoint: str) -> ModelNotFoundError:
    return ModelNotFoundError("pull.no_such_model", model=repo, endpoint=endpoint)


def no_such_revision(repo: str, revision: str, endpoint: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        "pull.no_such_revision", model=repo, revision=revision, endpoint=endpoint
    )


def refused(status: int, name: str, host: str) -> ModelNotFoundError:
    """What an HTTP status means that another try would not change."""
    if status == 401:
        return ModelNotFoundError("pull.unauthorised", name=name, status=status, host=host)
    if status == 403:
        return ModelNotFoundError("pull.forbidden", name=name, status=status, host=host)
    if status in (404, 410):
        return ModelNotFoundError("pull.file_gone", name=name, status=status, host=host)
    return ModelNotFoundError("pull.refused", name=name, status=status, host=host)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_MOST_BYTES = 2**50
_NAME = re.compile(r"[^\\:\x00-\x1f\x7f\ud800-\udfff]{1,255}")


def read_file(name: object, size: object, sha256: object, git_id: object) -> RemoteFile:
    """A file as a source lists it, once it is known that every part makes sense: names and digests
    become paths, and a mirror is not to be trusted with that.

    Raises:
        ValueError: what is wrong.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _leads_elsewhere(name):
        raise ValueError(f"a file called {name!r:.80}")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _MOST_BYTES:
        raise ValueError(f"{name} with the size {size!r:.40}")
    sha256, git_id = (one.lower() if isinstance(one, str) else one for one in (sha256, git_id))
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        return RemoteFile(name, size, sha256, None)
    if sha256 is None and isinstance(git_id, str) and _SHA1.fullmatch(git_id):
        return RemoteFile(name, size, None, git_id)
    raise ValueError(f"{name} without a digest")


def read_commit(commit: object) -> str:
    """Raises ValueError where a source tells something else than 40 hexadecimal digits."""
    if isinstance(commit, str) and _SHA1.fullmatch(commit):
        return commit
    raise ValueError(f"the commit {commit!r:.80}")


def _leads_elsewhere(name: str) -> bool:
    parts = name.split("/")
    return any(part in ("", ".", "..") for part in parts)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model: its size in bytes and the digests its source tells of it (hex).

    ``sha256`` is that of the content; ``git_id`` is the blob id that git gives it. Large files of
    the Hub have the first, small ones the second.
    """

    name: str
    size: int
    sha256: str | None
    git_id: str | None

    def new_digest(self) -> Any:
        """The hash that its source tells of it, before the first byte."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    @property
    def digest(self) -> str:
        """What the Hugging Face cache calls the file's blob."""
        return self.sha256 or self.git_id or ""


@dataclass(frozen=True)
class RemoteModel:
    """A model at one commit; ``licence`` is what its card says, or ``None``."""

    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    licence: str | None = None


@dataclass(frozen=True)
class Location:
    """Where the bytes of a file are. ``headers`` are for that host alone."""

    url: str
    headers: Mapping[str, str]


class Source(Protocol):
    """Something that has models."""

    @property
    def name(self) -> str:
        """As ``--source`` spells it."""

    @property
    def endpoint(self) -> str:
        """Its address, for messages."""

    def describe(self, repo: str, revision: str) -> RemoteModel:
        """Commit and files of a model.

        Raises:
            UnreachableError: ``pull.unreachable`` or ``pull.server``.
            ModelNotFoundError: ``pull.no_such_model``, ``pull.no_such_revision``, ``pull.gated``,
                ``pull.unauthorised`` or ``pull.forbidden``.
        """

    def locate(self, model: RemoteModel, file: RemoteFile) -> Location:
        """Where to ask for the file at the model's commit."""
