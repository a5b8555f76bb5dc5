"""What a download will do, known before its first byte."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xverse_cli.models.download.remote import RemoteFile, RemoteModel
from xverse_cli.models.hub_folder import HubFolder
from xverse_cli.models.machine_fit import MachineFit, store_bytes
from xverse_cli.models.selection import is_store, is_weight_file
from xverse_runtime.errors import IntegrityError, ResourceError

SPARE_BYTES = 2**26  # for the small files of file system and program


@dataclass(frozen=True)
class Conversion:
    """A store to be made of what is fetched. ``store_bytes`` is its size."""

    precision: str
    output: Path
    store_bytes: int
    delete_source: bool
    damaged: tuple[str, ...] = ()  # files of a store that is there, to be made again

    @property
    def partial(self) -> Path:
        """Where it is made until it is complete."""
        return self.output.with_name(self.output.name + ".partial")

    @property
    def done_bytes(self) -> int:
        """What an interrupted conversion has written already."""
        files = self.partial.glob("*.safetensors") if self.partial.is_dir() else ()
        return min(sum(file.stat().st_size for file in files), self.store_bytes)


@dataclass(frozen=True)
class PullPlan:
    """Everything that is to be told before a download begins. Sizes in bytes.

    ``missing`` leaves out weight files that an interrupted conversion has packed already.
    """

    model: RemoteModel
    source: str
    endpoint: str
    folder: HubFolder
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    resumed_bytes: int
    conversion: Conversion | None
    fit: MachineFit | None
    accepted: str | None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def fetch_bytes(self) -> int:
        """Bytes that still have to come."""
        return sum(file.size for file in self.missing) - self.resumed_bytes

    @property
    def here_bytes(self) -> int:
        """Bytes that have come before, and may have been packed since."""
        return self.total_bytes - self.fetch_bytes

    @property
    def is_store(self) -> bool:
        return is_store(self.files)

    def disk_needs(self) -> list[tuple[Path, int]]:
        """How much is needed at each place; on one disk the needs add up."""
        fetch, conversion = self.fetch_bytes, self.conversion
        needs = [(self.folder.root, fetch)]
        if conversion is not None:
            if conversion.delete_source:
                weights = [file.size for file in self.missing if is_weight_file(file.name)]
                two = sum(sorted(weights)[-2:])
                rest = sum(file.size for file in self.missing if not is_weight_file(file.name))
                needs = [(self.folder.root, min(fetch, two + rest))]
            needs.append((conversion.output, conversion.store_bytes - conversion.done_bytes))
        return needs

    def check_disk(self) -> None:
        """Raises ResourceError: ``pull.disk_full``: it cannot fit."""
        by_disk: dict[int, tuple[Path, int]] = {}
        for place, needed in self.disk_needs():
            present = _present(place)
            disk = os.stat(present).st_dev
            where, so_far = by_disk.get(disk, (place, 0))
            by_disk[disk] = where, so_far + needed
        for place, needed in by_disk.values():
            free = free_bytes(place)
            if needed and needed + SPARE_BYTES > free:
                needed += SPARE_BYTES
                raise ResourceError(
                    "pull.disk_full", path=str(place), needed_bytes=needed, free_bytes=free
                )

    def to_json(self) -> dict[str, Any]:
        """The plan for ``--dry-run --json``."""
        present = {file.name for file in self.files} - {file.name for file in self.missing}
        return {
            "model": self.model.repo,
            "revision": self.model.revision,
            "commit": self.model.commit,
            "source": self.source,
            "endpoint": self.endpoint,
            "path": str(self.folder.snapshot(self.model.commit)),
            "files": [
                {"name": file.name, "bytes": file.size, "present": file.name in present}
                for file in self.files
            ],
            "total_bytes": self.total_bytes,
            "fetch_bytes": self.fetch_bytes,
            "disk": [
                {"path": str(place), "needed_bytes": needed, "free_bytes": free_bytes(place)}
                for place, needed in self.disk_needs()
            ],
            "conversion": _conversion_json(self.conversion),
            "fit": _fit_json(self.fit),
            "licence": {"card": self.model.licence, "accepted": self.accepted},
        }


def plan_conversion(
    precision: str, output: Path, config_json: bytes, *, delete_source: bool
) -> Conversion:
    try:
        size = store_bytes(config_json, precision)
    except ValueError as error:
        raise IntegrityError("config.not_json", path="config.json", detail=str(error)) from None
    return Conversion(precision, output, size or 0, delete_source)


def free_bytes(place: Path) -> int:
    """Of the disk that ``place`` is on or will be."""
    return shutil.disk_usage(_present(place)).free


def _present(place: Path) -> Path:
    return next(one for one in (place, *place.absolute().parents) if one.exists())


def _conversion_json(conversion: Conversion | None) -> dict[str, Any] | None:
    if conversion is None:
        return None
    return {
        "precision": conversion.precision,
        "path": str(conversion.output),
        "bytes": conversion.store_bytes,
        "delete_source": conversion.delete_source,
    }


def _fit_json(fit: MachineFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {
        "context": fit.context,
        "memory_bytes": fit.memory_bytes,
        "gpu_bytes": fit.gpu_bytes,
        "precisions": [
            {
                "precision": row.precision,
                "weight_bytes": row.weight_bytes,
                "cache_bytes": row.cache_bytes,
                "fits_gpu": row.fits_gpu,
                "fits_memory": row.fits_memory,
                "tokens_per_s": row.tokens_per_s,
            }
            for row in fit.rows
        ],
    }
