"""Text to token ids and back, for the published ``tokenizer.json`` and for ``tokenizer.model``.

Encoding is done by the tokenizer libraries. Decoding is ours: every piece stands for some bytes
(a byte piece for one, any other for its UTF-8 text), and the bytes of a sequence are decoded
together. That makes streaming exact: see `StreamDecoder`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from xverse_runtime.errors import IntegrityError, ModelNotFoundError
from xverse_runtime.model_dir import ModelDirectory

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARK = "\u2581"


class Vocabulary(Protocol):
    """What a tokenizer library provides; implemented for each file format."""

    special_tokens: dict[str, int]  # the text of a special token to its id
    pieces: list[bytes]  # what each id stands for; b"" for special tokens
    strips_leading_space: bool  # encoding puts a space before the text, decoding removes it

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text in which special tokens are ordinary text."""

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of text in which the text of a special token is that token."""


class Tokenizer:
    """Ids of a text and the text of ids; no begin token is ever added."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._special_text = {token: text for text, token in vocabulary.special_tokens.items()}

    @property
    def special_tokens(self) -> dict[str, int]:
        return self._vocabulary.special_tokens

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary.pieces)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of ``text``.

        Args:
            text: anything; lone surrogates are replaced by U+FFFD.
            parse_special: whether ``<|endoftext|>`` in the text is the end token. Never for text
                that a user wrote into a conversation: it would end somebody else's turn.
        """
        if not text:
            return []
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        encode = self._vocabulary.encode_with_specials if parse_special else None
        return (encode or self._vocabulary.encode_plain)(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        stream = StreamDecoder(self, skip_special=skip_special)
        return "".join(stream.push(token) for token in ids) + stream.flush()

    def piece(self, token: int, *, skip_special: bool = True) -> bytes:
        """The bytes of one id; none for ids beyond the vocabulary (padded embeddings have them)."""
        if token in self._special_text:
            return b"" if skip_special else self._special_text[token].encode()
        pieces = self._vocabulary.pieces
        return pieces[token] if 0 <= token < len(pieces) else b""

    @property
    def strips_leading_space(self) -> bool:
        return self._vocabulary.strips_leading_space


class StreamDecoder:
    """Decodes ids one at a time and never emits part of a character.

    The pieces returned by any sequence of `push` calls and a final `flush` join to exactly what
    `Tokenizer.decode` gives for all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_next = tokenizer.strips_leading_space

    def push(self, token: int) -> str:
        """The text that is complete now that ``token`` has come."""
        data = self._tokenizer.piece(token, skip_special=self._skip_special)
        if self._strip_next and data:
            data = data.removeprefix(b" ")
            self._strip_next = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """U+FFFD if a character was begun and never completed, else nothing."""
        return self._utf8.decode(b"", final=True)


def load_tokenizer(directory: ModelDirectory) -> Tokenizer:
    """The tokenizer of a model; ``tokenizer.json`` where both forms exist.

    Raises:
        ModelNotFoundError: ``tokenizer.missing``.
        IntegrityError: ``tokenizer.invalid`` or ``tokenizer.unsupported``.
    """
    # The libraries are imported by what is there: each costs start-up time.
    if directory.has(JSON_FILE):
        from xverse_runtime.tokenizer_json import JsonVocabulary

        return Tokenizer(JsonVocabulary.load(directory))
    if directory.has(SENTENCEPIECE_FILE):
        from xverse_runtime.tokenizer_sentencepiece import SentencePieceVocabulary

        return Tokenizer(SentencePieceVocabulary.load(directory))
    raise ModelNotFoundError("tokenizer.missing", path=str(directory.path))


def piece_bytes(piece: str, *, is_byte: bool) -> bytes:
    """The bytes that a vocabulary entry stands for."""
    match = BYTE_PIECE.fullmatch(piece) if is_byte else None
    return bytes([int(match[1], 16)]) if match else piece.replace(SPACE_MARK, " ").encode()


def split_specials(text: str, specials: Sequence[str]) -> list[str]:
    """``text`` cut so that every special token in it stands alone; the longest match wins."""
    if not specials:
        return [text]
    pattern = "|".join(re.escape(one) for one in sorted(specials, key=len, reverse=True))
    return [part for part in re.split(f"({pattern})", text) if part]


def invalid_tokenizer(directory: ModelDirectory, name: str, error: Exception) -> IntegrityError:
    detail = str(error).strip() or type(error).__name__
    path = str(directory.path / name)
    return IntegrityError("tokenizer.invalid", path=path, detail=detail.splitlines()[0][:300])
