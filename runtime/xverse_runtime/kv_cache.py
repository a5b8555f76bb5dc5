"""Keys and values of the tokens computed so far, in memory allocated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xverse_kernels.kv_rows import empty_rows, row_bytes
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import UsageError

FORMATS = {"bf16": torch.bfloat16, "int8": torch.int8}


def cache_dtype(kv: str, activations: torch.dtype) -> torch.dtype:
    """What a pool is made of for a setting `EngineConfig.kv`.

    Raises:
        UsageError: ``kv.unsupported``.
    """
    if kv == "auto":
        return activations
    if kv not in FORMATS:
        raise UsageError("kv.unsupported", kv=kv, supported=", ".join(("auto", *FORMATS)))
    return FORMATS[kv]


class KVPool:
    """The caches of one or several sequences: for each layer keys and values
    [sequences, kv_heads, capacity, head_dim]."""

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        sequences: int = 1,
    ) -> None:
        """``dtype``: that of activations, or `torch.int8` for integers with scales (`Int8Rows`)."""
        shape = (sequences, config.num_kv_heads, capacity, config.head_dim)
        layers = range(config.num_layers)
        self.keys = [empty_rows(shape, dtype, device) for _ in layers]
        self.values = [empty_rows(shape, dtype, device) for _ in layers]
        self.dtype = dtype
        self.capacity = capacity
        self.sequences = sequences

    @staticmethod
    def bytes_needed(
        config: ModelConfig, capacity: int, dtype: torch.dtype, sequences: int = 1
    ) -> int:
        vectors = 2 * config.num_layers * config.num_kv_heads * capacity * sequences
        return vectors * row_bytes(config.head_dim, dtype)


class KVCache:
    """One sequence of a pool: which tokens are cached.

    A forward pass writes beyond ``length`` layer by layer; only `commit` makes those tokens part
    of the cache. A pass that is abandoned half way therefore leaves the cache as it was.
    """

    def __init__(self, pool: KVPool, sequence: int = 0) -> None:
        self.pool = pool
        self.sequence = sequence
        self._tokens: list[int] = []

    @property
    def capacity(self) -> int:
        return self.pool.capacity

    @property
    def length(self) -> int:
        return len(self._tokens)

    def check_room(self, count: int) -> None:
        """Raises IndexError when ``count`` more tokens do not fit."""
        if self.length + count > self.capacity:
            raise IndexError(f"{self.length + count} tokens in a cache of {self.capacity}")

    def commit(self, tokens: Sequence[int]) -> None:
        """Count ``tokens``, whose keys and values have been written in every layer, as cached."""
        self._tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position ``length`` on."""
        del self._tokens[length:]

    def common_prefix(self, tokens: Sequence[int]) -> int:
        """How many of the first ``tokens`` are cached already."""
        return common_prefix(self._tokens, tokens)

    @property
    def tokens(self) -> list[int]:
        """Those that are cached."""
        return [*self._tokens]

    @property
    def nbytes(self) -> int:
        """What `copies` takes."""
        return sum(one[:, :1].nbytes for one in self._tensors()) * self.length

    @torch.inference_mode()
    def copies(self) -> list[Tensor]:
        """Keys and values of what is cached, in main memory."""
        return [one[:, : self.length].to("cpu", copy=True) for one in self._tensors()]

    @torch.inference_mode()
    def fill(self, tokens: Sequence[int], copies: Sequence[Tensor]) -> None:
        """Hold ``tokens``, whose keys and values `copies` gave, and nothing else."""
        for mine, copy in zip(self._tensors(), copies, strict=True):
            mine[:, : len(tokens)].copy_(copy)
        self._tokens = list(tokens)

    def _tensors(self) -> Iterator[Tensor]:
        """What the pool has for this sequence, [kv_heads, capacity, ...] each."""
        for rows in (*self.pool.keys, *self.pool.values):
            for one in rows if isinstance(rows, tuple) else (rows,):
                yield one[self.sequence]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
