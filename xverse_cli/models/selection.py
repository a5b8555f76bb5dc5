"""Which of a repository's files the runtime needs."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from xverse_cli.models.download.remote import RemoteFile, RemoteModel
from xverse_runtime.errors import ModelNotFoundError

STORE_MANIFEST = "xverse.json"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "modeling_*.py",  # as text: the chat format may stand in it
    "*LICENSE*",
    "*License*",
)
# The first kind that is there is taken: safetensors go before pickles of the same weights.
WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*.bin"),
)


def select_files(model: RemoteModel) -> tuple[RemoteFile, ...]:
    """The files to fetch: small ones first, then the weights in the order of their names.

    Raises:
        ModelNotFoundError: ``pull.no_model``: the repository holds no model that could be run.
    """
    top = [file for file in model.files if "/" not in file.name]
    small = [file for file in top if _matches(file.name, SMALL_FILES)]
    if any(file.name == STORE_MANIFEST for file in top):
        weights = [
            file
            for file in top
            if file.name == STORE_MANIFEST or _matches(file.name, ("*.safetensors",))
        ]
    else:
        weights = _published_weights(top)
    if not weights or not any(file.name == "config.json" for file in small):
        raise ModelNotFoundError("pull.no_model", model=model.repo)
    # an index goes before its shards: it says which they are
    weights.sort(key=lambda file: (not file.name.endswith(".json"), file.name))
    return (*sorted(small, key=lambda file: file.name), *weights)


def is_store(files: Iterable[RemoteFile]) -> bool:
    """Whether these are the files of a converted model."""
    return any(file.name == STORE_MANIFEST for file in files)


def is_weight_file(name: str) -> bool:
    """Whether a file holds tensors, rather than a list of them."""
    return name.endswith((".safetensors", ".bin"))


def _published_weights(top: list[RemoteFile]) -> list[RemoteFile]:
    for patterns in WEIGHTS:
        found = [file for file in top if _matches(file.name, patterns)]
        if any(is_weight_file(file.name) for file in found):
            return found
    return []


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
