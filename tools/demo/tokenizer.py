"""Trains the demo's SentencePiece tokenizer: BPE with byte fallback, lossless, deterministic."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

PAD_ID, BOS_ID, EOS_ID = 1, 2, 3


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """Returns the model file's bytes. Fed from memory: a file name would end up inside."""
    lines = [line for text in texts for line in text.splitlines() if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        # The rarest characters are left to the bytes, which also exercises them.
        character_coverage=0.9993,
        byte_fallback=True,
        split_digits=True,
        # Lossless: nothing is normalised, added or removed.
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_piece="<pad>",
        bos_piece="<|startoftext|>",
        eos_piece="<|endoftext|>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class Tokenizer:
    """Text ↔ ids, without special tokens."""

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def from_dir(cls, directory: Path) -> "Tokenizer":
        return cls((directory / "tokenizer.model").read_bytes())

    @property
    def vocab_size(self) -> int:
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._processor.decode(ids)
        return text
