"""Keys and values of the tokens computed so far, in memory allocated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xverse_kernels.kv_rows import Int8Rows, Rows, empty_rows, row_bytes, to_int8
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
    [sequences, kv_heads, capacity, head_dim].

    A pool can `leave` the device, to `come_back` smaller or in another format: by way of the host,
    so that the old memory is free before the new is asked for. In between it has no keys or values.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        sequences: int = 1,
        *,
        later: bool = False,
    ) -> None:
        """
        Args:
            config: the model's.
            capacity: tokens of a sequence.
            dtype: that of activations, or `torch.int8` for integers with scales (`Int8Rows`).
            device: whose memory it is.
            sequences: how many there are.
            later: take no memory before `come_back`.
        """
        self.keys: list[Rows] = []
        self.values: list[Rows] = []
        self.dtype = dtype
        self.capacity = capacity
        self.sequences = sequences
        self._config = config
        self._device = device
        self._outside: list[Rows] = []  # on the host, the keys of all layers before the values
        if not later:
            self.come_back()

    @property
    def is_here(self) -> bool:
        """Whether it has its memory."""
        return bool(self.keys)

    @property
    def nbytes(self) -> int:
        """What it takes of the device, if it is there."""
        return self.bytes_needed(self._config, self.capacity, self.dtype, self.sequences)

    @torch.inference_mode()
    def leave(
        self, rows: int, *, capacity: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Give all memory back, and say what to come back with.

        Args:
            rows: keys and values of the first so many tokens of every sequence are kept.
            capacity: by default what it was.
            dtype: the same; `torch.int8` for what was not.

        Raises:
            RuntimeError: the host has no room for them; nothing was given back.
        """
        if self.is_here:
            outside = [_on_host(one, min(rows, self.capacity)) for one in self.keys + self.values]
            self.keys, self.values, self._outside = [], [], outside
        self.capacity = capacity or self.capacity
        self.dtype = dtype or self.dtype

    def release(self) -> None:
        """Give all memory back for good, whoever still refers to the pool."""
        self.keys, self.values, self._outside = [], [], []

    def come_back(self) -> None:
        """Take memory, and have the same keys and values as before, rounded if the format is new.

        Raises:
            torch.OutOfMemoryError: there is not that much; nothing was taken or lost.
        """
        config = self._config
        shape = (self.sequences, config.num_kv_heads, self.capacity, config.head_dim)
        count = config.num_layers
        made = [empty_rows(shape, self.dtype, self._device) for _ in range(2 * count)]
        for rows, kept in zip(made, self._outside, strict=False):
            copy_rows(kept, rows)
        self.keys, self.values, self._outside = made[:count], made[count:], []

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
        return self.pool.nbytes // (self.pool.sequences * self.capacity) * self.length

    @torch.inference_mode()
    def copies(self) -> list[Rows]:
        """Keys and values of what is cached, in main memory."""
        return [_on_host(one, self.length) for one in self._mine()]

    @torch.inference_mode()
    def fill(self, tokens: Sequence[int], copies: Sequence[Rows]) -> None:
        """Hold ``tokens``, whose keys and values `copies` gave, and nothing else; what there is no
        room for is left out. They may be from before the pool changed its format."""
        for mine, copy in zip(self._mine(), copies, strict=True):
            copy_rows(copy, mine)
        self._tokens = list(tokens[: self.capacity])

    def _mine(self) -> Iterator[Rows]:
        """What the pool has for this sequence, [kv_heads, capacity, head_dim] each."""
        for rows in (*self.pool.keys, *self.pool.values):
            if isinstance(rows, Int8Rows):
                yield Int8Rows(rows.integers[self.sequence], rows.scales[self.sequence])
            else:
                yield rows[self.sequence]


def _on_host(rows: Rows, count: int) -> Rows:
    """A copy of the first ``count`` vectors of [..., capacity, D]."""
    heads, width = rows.shape[:-2], rows.shape[-1]
    dtype = torch.int8 if isinstance(rows, Int8Rows) else rows.dtype
    copy = empty_rows((*heads, count, width), dtype, torch.device("cpu"))
    copy_rows(rows, copy)
    return copy


@torch.inference_mode()
def copy_rows(source: Rows, target: Rows) -> None:
    """Vectors [..., n, D] to the beginning of [..., capacity, D], as far as they go; rounded to
    integers where only the target has those. Integers never become floats again."""
    count = min(source.shape[-2], target.shape[-2])
    if not isinstance(target, Int8Rows):
        assert isinstance(source, Tensor)
        _copy_heads(source, target, target.dim() - 2, count)
        return
    rounded = source if isinstance(source, Int8Rows) else to_int8(source[..., :count, :])
    heads = target.integers.dim() - 2
    _copy_heads(rounded.integers, target.integers, heads, count)
    _copy_heads(rounded.scales, target.scales, heads, count)


def _copy_heads(source: Tensor, target: Tensor, heads: int, count: int) -> None:
    """One by one, so that each copy is of memory in one piece: of others torch would make one
    first, on a device that may have no room for it."""
    for one, other in zip(source.flatten(0, heads - 1), target.flatten(0, heads - 1), strict=True):
        other[:count].copy_(one[:count])


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
