"""The loop of one generation: prefill in chunks, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from time import perf_counter

import torch
from torch import Tensor

from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import Decoding, DeviceDecoding, HostDecoding
from xverse_runtime.device import out_of_memory
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.lookup import Lookup
from xverse_runtime.memory_ladder import MemoryLadder
from xverse_runtime.model import Checkpoint, Decoder
from xverse_runtime.moe import RouterObserver
from xverse_runtime.reply import Reply
from xverse_runtime.tokenizer import Tokenizer
from xverse_runtime.types import CancelFlag, GenerationChunk, SamplingParams

SMALLEST_CHUNK = 64
# Ctrl-C is to stop a prompt within 200 ms, so no step between two looks may take much of that.
LONGEST_STEP_S = 0.15
SMALLEST_PACED_CHUNK = 32


class CancelledError(Exception):
    """Raised inside a forward pass when the cancel flag is set."""


class Pace:
    """Looks at the cancel flag, and at how long it took from one look to the next."""

    def __init__(self, look: Checkpoint) -> None:
        self._look = look
        self._last = perf_counter()
        self.longest_s = 0.0

    def __call__(self) -> None:
        now = perf_counter()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self._look()


class Prefill:
    """Computes prompts in chunks that fit the memory: a chunk that does not is halved for good,
    and when it cannot get smaller, other things do.

    Where that is wanted, chunks also get smaller when a slow processor takes long over one step,
    and larger again when it does not.
    """

    def __init__(
        self,
        decoder: Decoder,
        chunk: int,
        on_smaller: Callable[[int], None] = lambda _chunk: None,
        observer: RouterObserver | None = None,
        *,
        paced: bool = False,
        ladder: MemoryLadder | None = None,
    ) -> None:
        """``on_smaller`` is told the new size when a chunk did not fit.

        ``observer`` is told the routers' logits, where nobody else observes the decoder. ``paced``:
        keep steps short, for which the kernels' splits must be exact. ``ladder``: what else can be
        given up.
        """
        self._ladder = ladder or MemoryLadder()
        self._observer = observer
        self._paced = paced
        self._paced_chunk = chunk
        self._decoder = decoder
        self._on_smaller = on_smaller
        self.chunk = chunk

    def __call__(
        self, tokens: Sequence[int], cache: KVCache, between: Checkpoint | None = None
    ) -> Tensor:
        """Compute ``tokens`` beyond what is cached; logits [1, vocab] after the last of them.

        Raises:
            ResourceError: ``memory.exhausted``, when not even a small chunk fits.
        """
        logits = torch.empty(0)
        while cache.length < len(tokens):
            start = cache.length
            size = min(self.chunk, self._paced_chunk) if self._paced else self.chunk
            end = min(start + size, len(tokens))
            pace = Pace(between or _no_look)
            wanted = slice(-1, None) if end == len(tokens) else slice(0)
            try:
                logits = self._decoder.forward(
                    tokens[start:end],
                    cache,
                    logits_for=wanted,
                    between=pace if self._paced else between,
                    observer=self._decoder.observer or self._observer,
                )
            except torch.OutOfMemoryError as error:
                reason = str(error)
            else:
                self._adapt(size, pace.longest_s)
                continue
            # After the error is gone, and with it what was computed so far.
            self._make_room(end - start, reason)
        return logits

    def _make_room(self, tokens: int, reason: str) -> None:
        if tokens > SMALLEST_CHUNK:
            self.chunk = max(SMALLEST_CHUNK, tokens // 2)
            self._on_smaller(self.chunk)
            torch.cuda.empty_cache()
            return
        out_of_room = torch.OutOfMemoryError(reason)
        if not self._ladder.give_up():
            raise out_of_memory(self._decoder.device, out_of_room)
        try:
            self._ladder.attempt(lambda: None)
        except torch.OutOfMemoryError:
            raise out_of_memory(self._decoder.device, out_of_room) from None

    def _adapt(self, size: int, longest_s: float) -> None:
        if longest_s > LONGEST_STEP_S:
            self._paced_chunk = max(SMALLEST_PACED_CHUNK, size // 2)
        elif longest_s < LONGEST_STEP_S / 3:
            self._paced_chunk = min(self.chunk, 2 * self._paced_chunk)


def _no_look() -> None:
    pass


class Generation:
    """One reply to one prompt; iterate over `chunks` once."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        end_token_ids: Sequence[int],
        prefill: Prefill,
        cancel: CancelFlag,
        loop: DecodeLoop | None = None,
        lookup: bool = False,
        ladder: MemoryLadder | None = None,
    ) -> None:
        """``prompt_ids`` must be fewer than the cache's capacity; ``params`` checked.

        With a ``loop``, tokens are chosen on its device where it can. ``lookup``: compute likely
        tokens ahead, for which the kernels' splits must be exact. ``ladder``: what is given up when
        the memory does not do.
        """
        self._ladder = ladder or MemoryLadder()
        self._decoder = decoder
        self._cache = cache
        self._prefill = prefill
        self._cancel = cancel
        self._loop = loop
        self._use_lookup = lookup
        # The last prompt token is always computed: its logits choose the first new one.
        self._cached = min(cache.common_prefix(prompt_ids), len(prompt_ids) - 1)
        self._reply = Reply(
            tokenizer,
            prompt_ids,
            params,
            end_token_ids=end_token_ids,
            capacity=cache.capacity,
            cached=self._cached,
        )
        self._ladder.needed = len(prompt_ids) + self._reply.limit

    def chunks(self) -> Generator[GenerationChunk, None, None]:
        """A chunk a token; the last one has the finish reason."""
        reply, clock = self._reply, self._reply.clock
        try:
            started = perf_counter()
            self._cache.truncate(self._cached)
            logits = self._prefill(reply.history, self._cache, self._raise_if_cancelled)
            decoding = self._ladder.attempt(lambda: self._start(logits))
            drawn = decoding.next()
            clock.prefill_s = perf_counter() - started
            while True:
                started = perf_counter()
                chunk = reply.push(drawn)
                clock.decode_s += perf_counter() - started
                yield chunk
                if chunk.finish_reason is not None:
                    return
                started = perf_counter()
                drawn = decoding.next()
                clock.decode_s += perf_counter() - started
                clock.decoded += 1
        except CancelledError:
            yield reply.interrupt()
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self._decoder.device, error) from None

    def _start(self, logits: Tensor) -> Decoding:
        reply, loop, check = self._reply, self._loop, self._raise_if_cancelled
        on_device = reply.params.logprobs is None
        if loop is not None and on_device and loop.sampler.can_draw(reply.choice):
            return DeviceDecoding(
                loop,
                self._cache,
                logits,
                reply.history,
                reply.choice,
                reply.limit,
                check,
                self._ladder,
            )
        lookup = Lookup(reply.history, reply.limit) if self._use_lookup else None
        reply.passes = lookup.passes if lookup else ()
        return HostDecoding(
            self._decoder,
            self._cache,
            logits,
            reply.history,
            reply.params,
            reply.seed,
            check,
            lookup,
            self._ladder,
        )

    def _raise_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise CancelledError
