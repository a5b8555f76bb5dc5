"""A model's directory, and the rule that nothing outside of it is read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from xverse_runtime.errors import IntegrityError, ModelNotFoundError

MAX_JSON_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ModelDirectory:
    """Files of one model, all of them directly inside ``path``.

    Symbolic links are followed only while they stay inside the directory. In the layout of the Hub
    cache (``models--org--name/snapshots/<commit>/``) a snapshot links to ``../../blobs``, so there
    the border is that model's own folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path | str) -> ModelDirectory:
        """Raises ModelNotFoundError when ``path`` is no directory."""
        directory = Path(path)
        if not os.path.isdir(directory):  # unlike pathlib's, it takes any name
            raise ModelNotFoundError("model.not_a_directory", path=str(path))
        return cls(directory.resolve())

    @property
    def _border(self) -> Path:
        in_hub_cache = self.path.parent.name == "snapshots"
        is_model_folder = self.path.parent.parent.name.startswith("models--")
        return self.path.parent.parent if in_hub_cache and is_model_folder else self.path

    @property
    def display_name(self) -> str:
        """The folder's name; in the Hub cache the repository's, ``org/name``."""
        if self._border == self.path:
            return self.path.name
        return self._border.name.removeprefix("models--").replace("--", "/", 1)

    @property
    def revision(self) -> str:
        """The commit, in the Hub cache; else nothing."""
        return "" if self._border == self.path else self.path.name

    def file(self, name: str) -> Path:
        """The real path of a file of the model.

        Raises:
            IntegrityError: ``path.outside`` for a name with folders in it or a link that leads
                out of the directory, ``path.missing`` when there is no such file, and
                ``path.unreadable`` when this user may not read it.
        """
        plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
        if not plain or name in ("", ".", "..") or "\0" in name:
            raise IntegrityError("path.outside", name=name, path=str(self.path))
        try:
            real = (self.path / name).resolve()
            found = real.is_file()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name no disk can have
            raise IntegrityError("path.missing", name=name, path=str(self.path)) from None
        if not real.is_relative_to(self._border):
            raise IntegrityError("path.outside", name=name, path=str(self.path))
        if not found:
            raise IntegrityError("path.missing", name=name, path=str(self.path))
        if not os.access(real, os.R_OK):
            raise _unreadable(self.path / name, "permission denied")
        return real

    def has(self, name: str) -> bool:
        """Whether an entry of that name exists, even as a broken or forbidden link."""
        return os.path.lexists(self.path / name)

    def names(self, pattern: str) -> list[str]:
        """Names of the entries that match a glob, sorted."""
        return sorted(entry.name for entry in self.path.glob(pattern))

    def read_bytes(self, name: str) -> bytes:
        """A small file as it is.

        Raises:
            IntegrityError: ``path.unreadable``, and what `file` raises.
        """
        file = self.file(name)
        try:
            if file.stat().st_size > MAX_JSON_BYTES:
                raise _unreadable(file, "file too large")
            return file.read_bytes()
        except OSError as error:
            raise _unreadable(file, error.strerror or str(error)) from None

    def read_text(self, name: str) -> str:
        """The UTF-8 text of a file.

        Raises:
            IntegrityError: ``config.not_json`` when it is too large or not UTF-8.
        """
        file = self.file(name)
        try:
            if file.stat().st_size > MAX_JSON_BYTES:
                raise IntegrityError("config.not_json", path=str(file), detail="file too large")
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise IntegrityError("config.not_json", path=str(file), detail=str(error)) from None
        except OSError as error:
            raise _unreadable(file, error.strerror or str(error)) from None

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            IntegrityError: ``config.not_json``.
        """
        try:
            data = json.loads(self.read_text(name))
        except (ValueError, RecursionError) as error:
            detail = str(error) or type(error).__name__
            raise IntegrityError(
                "config.not_json", path=str(self.path / name), detail=detail
            ) from None
        if not isinstance(data, dict):
            raise IntegrityError(
                "config.not_json", path=str(self.path / name), detail="not a JSON object"
            )
        return data


def _unreadable(path: Path, detail: str) -> IntegrityError:
    return IntegrityError("path.unreadable", path=str(path), detail=detail)
