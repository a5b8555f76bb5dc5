"""The published ``tokenizer.json``, repaired in memory so that current libraries load it.

The files were written for tokenizers 0.15, whose Metaspace had ``add_prefix_space``. Releases from
0.19 on want ``prepend_scheme`` and refuse the file; ``never`` and ``always`` are the old meaning.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer

from xverse_runtime.errors import IntegrityError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.tokenizer import JSON_FILE, invalid_tokenizer, piece_bytes

# Decoders whose work `piece_bytes` does; any other would decode to different text.
KNOWN_DECODERS = {"ByteFallback", "Metaspace", "Fuse"}


class JsonVocabulary:
    """`Vocabulary` over the tokenizers library."""

    def __init__(self, library: LibraryTokenizer, *, strips_leading_space: bool) -> None:
        self._library = library
        self.strips_leading_space = strips_leading_space
        added = library.get_added_tokens_decoder()
        self.special_tokens = {
            token.content: number for number, token in added.items() if token.special
        }
        vocabulary = library.get_vocab(with_added_tokens=True)
        self.pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for piece, number in vocabulary.items():
            self.pieces[number] = piece_bytes(piece, is_byte=number not in added)

    @classmethod
    def load(cls, directory: ModelDirectory) -> JsonVocabulary:
        """Raises IntegrityError: ``tokenizer.invalid`` or ``tokenizer.unsupported``."""
        data = directory.read_json(JSON_FILE)
        metaspaces = _repair(data)
        _refuse_other_decoders(data, directory)
        try:
            library = LibraryTokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises plain Exception
            raise invalid_tokenizer(directory, JSON_FILE, error) from None
        library.no_truncation()
        library.no_padding()
        strips = any(one.get("prepend_scheme") in ("always", "first") for one in metaspaces)
        return cls(library, strips_leading_space=strips)

    def encode_plain(self, text: str) -> list[int]:
        self._library.encode_special_tokens = True
        return self._library.encode(text, add_special_tokens=False).ids

    def encode_with_specials(self, text: str) -> list[int]:
        self._library.encode_special_tokens = False
        return self._library.encode(text, add_special_tokens=False).ids


def _repair(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Bring every Metaspace of pre-tokenizer and decoder to the current form; returns them."""
    found = [
        part
        for role in ("pre_tokenizer", "decoder")
        for part in _parts(data.get(role))
        if part.get("type") == "Metaspace"
    ]
    for part in found:
        if "add_prefix_space" in part and "prepend_scheme" not in part:
            part["prepend_scheme"] = "always" if part.pop("add_prefix_space") else "never"
    return found


def _parts(component: Any) -> list[dict[str, Any]]:
    """A component, or the members of a sequence of them."""
    if not isinstance(component, dict):
        return []
    members = component.get("pretokenizers", component.get("decoders"))
    if not isinstance(members, list):
        return [component]
    return [part for member in members for part in _parts(member)]


def _refuse_other_decoders(data: dict[str, Any], directory: ModelDirectory) -> None:
    unknown = {str(part.get("type")) for part in _parts(data.get("decoder"))} - KNOWN_DECODERS
    if unknown:
        raise IntegrityError(
            "tokenizer.unsupported",
            path=str(directory.path / JSON_FILE),
            detail=f"decoder {', '.join(sorted(unknown))}",
        )
