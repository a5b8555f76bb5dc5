"""Where the tokens of a reply come from, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from xverse_kernels.types import TokenChoice
from xverse_runtime.decode_loop import DecodeLoop, OffloadedStep, TokenMailbox
from xverse_runtime.errors import GenerationError
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.lookup import Lookup
from xverse_runtime.memory_ladder import MemoryLadder
from xverse_runtime.model import Checkpoint, Decoder
from xverse_runtime.sampling import choose_token, is_finite
from xverse_runtime.types import Drawn, SamplingParams


class Decoding(Protocol):
    """The tokens after a prompt. After each, all tokens before it are in the cache."""

    def next(self) -> Drawn:
        """Raises GenerationError ``sampling.non_finite``, or what the checkpoint raises."""


class HostDecoding:
    """Compute, then choose by the logits: token by token, or with proposals beside the newest.

    A proposal that is not chosen is forgotten with its logits. Each token is chosen when it is
    asked for, from what came before it and nothing else, and only then are proposals part of the
    cache: a reader cannot tell how many were computed at once.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        logits: Tensor,
        history: Sequence[int],
        params: SamplingParams,
        seed: int,
        between: Checkpoint,
        lookup: Lookup | None = None,
        ladder: MemoryLadder | None = None,
    ) -> None:
        """``logits`` [1, vocab] follow the last of ``history``; ``between`` may raise.

        ``lookup`` only with kernels of exact splits. ``ladder`` as for `DeviceDecoding`.
        """
        self._ladder = ladder or MemoryLadder()
        self._decoder = decoder
        self._cache = cache
        # after the newest token, then after each proposal that may still turn out right
        self._rows = deque(logits)
        self._history = list(history)
        self._prompt_tokens = len(history)
        self._params = params
        self._generator = torch.Generator(logits.device).manual_seed(seed)
        self._between = between
        self._lookup = lookup

    def next(self) -> Drawn:
        self._between()
        if self._rows:  # what was chosen since the last pass has been written to the cache
            self._cache.commit(self._history[self._cache.length :])
        else:
            self._compute()
        row = self._rows.popleft()
        if not is_finite(row):
            step = len(self._history) - self._prompt_tokens
            raise GenerationError("sampling.non_finite", step=step)
        history = torch.tensor(self._history, dtype=torch.int64, device=row.device)
        token = choose_token(row, history, self._params, self._generator)
        self._history.append(token)
        if self._lookup is not None and not self._lookup.chosen(token):
            self._rows.clear()
        return Drawn(token, row)

    def _compute(self) -> None:
        """One pass over the newest token and the proposals."""
        proposals = [] if self._lookup is None else self._lookup.propose()
        started = perf_counter()
        logits = self._ladder.attempt(
            lambda: self._decoder.forward(
                [self._history[-1], *proposals],
                self._cache,
                logits_for=slice(None),
                between=self._between,
            )
        )
        self._cache.truncate(len(self._history))
        # Each row in memory of its own: sums may depend on where they begin.
        self._rows.extend(row.clone() for row in logits)
        if self._lookup is not None:
            self._lookup.passed(perf_counter() - started)


class DeviceDecoding:
    """One step ahead of the reader: while the host looks at a token, the next is computed. Where
    the host has a part in a step, it begins when the reader comes back.

    A reader that stops leaves one step unread. It wrote to the cache beyond what is committed,
    where the next forward pass writes anew.
    """

    def __init__(
        self,
        loop: DecodeLoop,
        cache: KVCache,
        logits: Tensor,
        history: Sequence[int],
        choice: TokenChoice,
        limit: int,
        between: Checkpoint,
        ladder: MemoryLadder | None = None,
    ) -> None:
        """Like `HostDecoding`; at most ``limit`` tokens, which must fit into the cache.

        The loop's pool has this one sequence. A step that finds no memory is begun again when
        ``ladder`` has made some: until its token is chosen it leaves nothing behind.
        """
        self._ladder = ladder or MemoryLadder()
        self._loop = loop
        self._cache = cache
        self._between = between
        self._limit = limit
        self._mailbox = TokenMailbox(1, loop.positions.device)
        loop.sampler.begin(0, history, choice)
        loop.start(0, len(history))
        self._position = len(history)
        self._mailbox.post(loop.sampler(logits))
        self._computed = 1
        self._last: int | None = None
        self._read = 0

    def next(self) -> Drawn:
        self._between()
        # Running ahead would only delay the token that is there, where a step has to be waited for.
        ahead = not self._loop.waits or self._read == self._computed
        if ahead and self._computed < self._limit:
            self._mailbox.post(self._ladder.attempt(lambda: self._loop.step(self._position)))
            self._position += 1
            self._computed += 1
        (token,) = self._mailbox.take()
        if token < 0:
            raise GenerationError("sampling.non_finite", step=self._read)
        if self._last is not None:
            self._cache.commit([self._last])
        self._last = token
        self._read += 1
        return Drawn(token, None)


class TorchSampler:
    """`TokenSampler` by the functions of `sampling`, for backends without one of their own."""

    def __init__(self, sequences: int, device: torch.device) -> None:
        self.tokens = torch.zeros(sequences, dtype=torch.int64, device=device)
        self._histories: list[list[int]] = [[] for _ in range(sequences)]
        self._params = [SamplingParams()] * sequences
        self._generators = [torch.Generator(device) for _ in range(sequences)]

    def can_draw(self, choice: TokenChoice) -> bool:
        return True

    def begin(self, row: int, history: Sequence[int], choice: TokenChoice) -> None:
        self._histories[row] = list(history)
        self._generators[row].manual_seed(choice.seed)
        self._params[row] = SamplingParams(
            temperature=choice.temperature,
            top_k=choice.top_k,
            top_p=choice.top_p,
            min_p=choice.min_p,
            repetition_penalty=choice.repetition_penalty,
        )

    def __call__(self, logits: Tensor, first: int = 0) -> Tensor:
        for row, of_row in enumerate(logits, start=first):
            if not is_finite(of_row):
                self.tokens[row] = -1
                continue
            history = self._histories[row]
            seen = torch.tensor(history, dtype=torch.int64, device=logits.device)
            token = choose_token(of_row, seen, self._params[row], self._generators[row])
            history.append(token)
            self.tokens[row] = token
        return self.tokens


def decode_loop(
    decoder: Decoder, pool: KVPool, *, use_graphs: bool, offloaded: OffloadedStep | None = None
) -> DecodeLoop:
    """Steps over a pool's sequences, with what chooses tokens on this device."""
    sampler = decoder.kernels.sampler(pool.sequences, decoder.config.vocab_size)
    if sampler is None:  # these kernels choose no tokens, and cannot be captured
        plain = TorchSampler(pool.sequences, decoder.device)
        return DecodeLoop(decoder, pool, plain, use_graphs=False, offloaded=offloaded)
    return DecodeLoop(decoder, pool, sampler, use_graphs=use_graphs, offloaded=offloaded)
