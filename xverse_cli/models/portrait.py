"""What there is to know about a model without running it."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from xverse_cli.models import licence
from xverse_cli.models.find import DEMO, FoundModel
from xverse_cli.models.hub_cache import DEFAULT_REVISION, MANIFEST
from xverse_cli.models.inventory import read_object, store_commit
from xverse_cli.models.stores import stores_of
from xverse_runtime.config import ModelConfig
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.tensors import expected_tensors
from xverse_runtime.types import TemplateChoice

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True)
class Portrait:
    """``files``: name to size in bytes, ``None`` for one that is not there.

    ``parts`` are the formats of a store; ``stores`` those made of it, precision to directory.
    """

    name: str
    path: Path
    revision: str | None
    commit: str | None
    config: ModelConfig
    parameters: int
    active_parameters: int
    files: dict[str, int | None]
    parts: dict[str, str]
    template: TemplateChoice
    stores: dict[str, Path]
    accepted: str | None

    @property
    def is_demo(self) -> bool:
        return self.name == DEMO

    @property
    def licence_files(self) -> list[str]:
        return [name for name in self.files if "license" in name.lower()]

    @property
    def bytes(self) -> int:
        return sum(size or 0 for size in self.files.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "path": str(self.path),
            "revision": self.revision,
            "commit": self.commit,
            "architecture": _architecture(self.config),
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "precision": self.parts or self.config.dtype,
            "chat_template": {
                "name": self.template.name,
                "reason": self.template.reason,
                "source": self.template.source,
            },
            "files": [{"name": name, "bytes": size} for name, size in self.files.items()],
            "bytes": self.bytes,
            "licence": {"files": self.licence_files, "accepted": self.accepted},
            "stores": {precision: str(path) for precision, path in self.stores.items()},
        }


def portray(found: FoundModel) -> Portrait:
    """Read the small files of a model; of the weights only their sizes.

    Raises:
        IntegrityError, UnsupportedModelError: its configuration or chat template is unfit.
    """
    directory = ModelDirectory.open(found.path)
    config = ModelConfig.from_dir(directory)
    manifest = read_object(found.path / MANIFEST)
    published = _published_name(directory, manifest)
    hub_id = found.name or (directory.display_name if directory.revision else "")
    is_hub_id = "/" in hub_id
    revision = (found.revision or DEFAULT_REVISION) if is_hub_id and found.name else None
    made_of = revision or directory.revision
    total, active = parameters(config)
    parts = manifest.get("precision")
    return Portrait(
        name=hub_id or published,
        path=found.path,
        revision=revision,
        commit=directory.revision or store_commit(found.path),
        config=config,
        parameters=total,
        active_parameters=active,
        files=_files(found.path),
        parts={str(key): str(one) for key, one in parts.items()} if isinstance(parts, dict) else {},
        template=_template(directory, config, (found.name or "", published, config.source_name)),
        stores=stores_of(hub_id, made_of) if is_hub_id else {},
        accepted=licence.accepted(hub_id) if is_hub_id else None,
    )


def parameters(config: ModelConfig) -> tuple[int, int]:
    """How many there are, and how many of them a token is computed with."""
    total = idle = 0
    for name, shape in expected_tensors(config).items():
        count = prod(shape)
        total += count
        expert = _EXPERT.search(name)
        if expert and int(expert[1]) >= config.top_k:  # which ones a token gets changes nothing
            idle += count
    return total, total - idle


def _published_name(directory: ModelDirectory, manifest: dict[str, Any]) -> str:
    """As the engine has it, without reading more than the manifest's name."""
    source = manifest.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    return str(name or directory.display_name)


def _template(
    directory: ModelDirectory, config: ModelConfig, names: tuple[str, ...]
) -> TemplateChoice:
    from xverse_runtime.generation_config import read_end_tokens
    from xverse_runtime.template_choice import choose_chat_format

    ends = [*config.eos_token_ids, *read_end_tokens(directory)]
    named = tuple(name for name in names if name)
    return choose_chat_format(directory, ends[0] if ends else 3, None, named)[1]


def _architecture(config: ModelConfig) -> dict[str, Any]:
    return {
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "experts": config.num_experts,
        "experts_per_token": config.top_k,
        "shared_experts": config.num_shared_experts,
        "vocabulary": config.vocab_size,
        "context": config.trained_context,
        "maximum_context": config.maximum_context,
    }


def _files(path: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir() or entry.name.startswith((".", "__")):
            continue
        found[entry.name] = None
        with suppress(OSError, RuntimeError):
            found[entry.name] = entry.stat().st_size
    return found
