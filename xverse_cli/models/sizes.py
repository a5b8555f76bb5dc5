"""Whether weight files are as long as they say, without reading them: a cut file is found at once.

Only `xverse verify` reads every byte.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from xverse_cli.models.hub_cache import MANIFEST

_LONGEST_HEADER = 2**27  # bytes; what safetensors itself allows, and some
_ZIP, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_TAIL = 2**16 + 22  # the end record, behind which a comment may stand


def cut_files(model: Path) -> list[str]:
    """Names of the files of a model whose size is not what it should be.

    Stores list the sizes of their files; safetensors and the archives of torch tell their own. Of
    other files nothing is known.
    """
    told = _listed_sizes(model)
    found = []
    for file in sorted(model.glob("*")):
        try:
            if not _is_whole(file, told.get(file.name)):
                found.append(file.name)
        except OSError:  # it leads nowhere, or may not be read: others tell of that
            continue
    return found


def _is_whole(file: Path, listed: int | None) -> bool:
    if listed is not None:
        return file.stat().st_size == listed
    if file.suffix == ".safetensors":
        return file.stat().st_size == _safetensors_size(file)
    if file.suffix == ".bin":
        return _ends_as_archive(file)
    return True


def _safetensors_size(file: Path) -> int | None:
    """Bytes that the header promises; ``None`` of what has no such header."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if length > _LONGEST_HEADER:
            return None
        header = data.read(length)
    try:
        entries = json.loads(header)
        ends = [one["data_offsets"][1] for name, one in entries.items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _ends_as_archive(file: Path) -> bool:
    """Whether a zip has its end; the older format of torch, which is none, cannot be told."""
    with file.open("rb") as data:
        start = data.read(4)
        if start != _ZIP:
            return bool(start)
        size = data.seek(0, os.SEEK_END)
        data.seek(max(0, size - _ZIP_TAIL))
        return _ZIP_END in data.read()


def _listed_sizes(model: Path) -> dict[str, int]:
    try:
        files = json.loads((model / MANIFEST).read_bytes())["files"]
        return {str(name): int(one["bytes"]) for name, one in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
