"""``tokenizer.model``: the sentencepiece format."""

from __future__ import annotations

from sentencepiece import SentencePieceProcessor

from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.tokenizer import (
    SENTENCEPIECE_FILE,
    invalid_tokenizer,
    piece_bytes,
    split_specials,
)


class SentencePieceVocabulary:
    """`Vocabulary` over the sentencepiece library."""

    def __init__(self, library: SentencePieceProcessor) -> None:
        self._library = library
        numbers = range(library.get_piece_size())
        self.special_tokens = {
            library.id_to_piece(number): number
            for number in numbers
            if library.is_control(number) or library.is_unknown(number)
        }
        self.pieces = [
            piece_bytes(library.id_to_piece(n), is_byte=library.is_byte(n)) for n in numbers
        ]
        # A dummy prefix shows in the ids of any text that has no space in front.
        first = library.encode("a")
        self.strips_leading_space = bool(first) and self.pieces[first[0]].startswith(b" ")

    @classmethod
    def load(cls, directory: ModelDirectory) -> SentencePieceVocabulary:
        """Raises IntegrityError: ``tokenizer.invalid``."""
        try:
            model = directory.file(SENTENCEPIECE_FILE).read_bytes()
            return cls(SentencePieceProcessor(model_proto=model))
        except (RuntimeError, OSError, ValueError) as error:
            raise invalid_tokenizer(directory, SENTENCEPIECE_FILE, error) from None

    def encode_plain(self, text: str) -> list[int]:
        # sentencepiece never reads a control token out of text.
        ids: list[int] = self._library.encode(text)
        return ids

    def encode_with_specials(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in split_specials(text, list(self.special_tokens)):
            special = self.special_tokens.get(part)
            ids += self.encode_plain(part) if special is None else [special]
        return ids
