"""``xverse.json``: what a store is, where it came from, and the digest of each of its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from xverse_kernels.packing import FORMATS, WeightFormat
from xverse_runtime.errors import IntegrityError, UnsupportedModelError
from xverse_runtime.model_dir import ModelDirectory

MANIFEST_FILE = "xverse.json"
FORMAT_NAME = "xverse-store"
FORMAT_VERSION = 1
BYTE_ORDER = "little"


@dataclass(frozen=True)
class StorePrecision:
    """Format name of each part; the embedding is bf16, routers, norms and biases fp32."""

    experts: str
    attention: str
    head: str

    @property
    def expert_form(self) -> WeightFormat:
        return FORMATS[self.experts]

    @property
    def attention_form(self) -> WeightFormat:
        return FORMATS[self.attention]

    @property
    def head_form(self) -> WeightFormat:
        return FORMATS[self.head]


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``source``: name, and revision where known; ``files``: all files but the manifest."""

    precision: StorePrecision
    source: dict[str, str]
    files: dict[str, FileRecord]

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT_NAME,
                "format_version": FORMAT_VERSION,
                "byte_order": BYTE_ORDER,
                **asdict(self),
            },
            indent=2,
            ensure_ascii=False,
        )

    @classmethod
    def read(cls, directory: ModelDirectory, *, sizes: bool = True) -> Manifest:
        """Read and check ``xverse.json``, and with ``sizes`` that every file it names has its own.

        Raises:
            UnsupportedModelError: ``store.newer`` or ``store.byte_order``.
            IntegrityError: ``store.manifest_invalid``, ``store.file_missing`` or
                ``store.file_size``.
        """
        data = directory.read_json(MANIFEST_FILE)
        _check_header(data, directory)
        try:
            manifest = cls(
                StorePrecision(**data["precision"]),
                {str(key): str(value) for key, value in data["source"].items()},
                {name: FileRecord(**record) for name, record in data["files"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _invalid(directory, f"{type(error).__name__}: {error}") from None
        for part, name in asdict(manifest.precision).items():
            if not isinstance(name, str) or name not in FORMATS:
                raise _invalid(directory, f"{part} in unknown format {name!r}")
        for name, record in manifest.files.items():
            if type(record.bytes) is not int or not isinstance(record.sha256, str):
                raise _invalid(directory, f"the record of {name} is not a size and a digest")
            if sizes:
                _check_size(directory, name, record)
        return manifest


def is_store(directory: ModelDirectory) -> bool:
    return directory.has(MANIFEST_FILE)


def _check_header(data: dict[str, Any], directory: ModelDirectory) -> None:
    if data.get("format") != FORMAT_NAME or type(data.get("format_version")) is not int:
        raise _invalid(directory, f"not a manifest of format {FORMAT_NAME}")
    if data["format_version"] > FORMAT_VERSION:
        raise UnsupportedModelError(
            "store.newer",
            path=str(directory.path),
            version=data["format_version"],
            supported=FORMAT_VERSION,
        )
    if data.get("byte_order") != BYTE_ORDER:
        raise UnsupportedModelError(
            "store.byte_order", path=str(directory.path), found=str(data.get("byte_order"))
        )


def _check_size(directory: ModelDirectory, name: str, record: FileRecord) -> None:
    if not directory.has(name):
        raise IntegrityError("store.file_missing", name=name, path=str(directory.path))
    size = directory.file(name).stat().st_size
    if size != record.bytes:
        raise IntegrityError(
            "store.file_size",
            name=name,
            found=size,
            expected=record.bytes,
            path=str(directory.path),
        )


def _invalid(directory: ModelDirectory, detail: str) -> IntegrityError:
    return IntegrityError("store.manifest_invalid", path=str(directory.path), detail=detail)
