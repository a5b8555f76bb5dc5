"""Several replies at once: sequences of different lengths share each step, and a finished one
makes room for the next prompt of the queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from xverse_runtime.decode_loop import DecodeLoop, TokenMailbox
from xverse_runtime.decoding import decode_loop
from xverse_runtime.device import GPU_WORKSPACE_BYTES, free_gpu_bytes, out_of_memory
from xverse_runtime.errors import GenerationError
from xverse_runtime.generation import CancelledError, Prefill
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.memory_ladder import MemoryLadder
from xverse_runtime.model import Decoder
from xverse_runtime.reply import Reply
from xverse_runtime.types import AdjustmentCallback, CancelFlag, Drawn, GenerationChunk


@dataclass
class _Running:
    """A reply in one of the pool's sequences."""

    number: int
    reply: Reply
    position: int  # of the newest token
    computed: int  # tokens chosen so far, read or not
    begun: float | None = None  # when its prompt was begun, until its first token is read


class Batch:
    """Runs replies; each has its own settings and ends by itself."""

    def __init__(
        self,
        loop: DecodeLoop,
        pool: KVPool,
        prefill: Prefill,
        cancel: CancelFlag,
        ladder: MemoryLadder | None = None,
    ) -> None:
        """As many at once as the pool has sequences; ``prefill`` with the loop's decoder, and with
        the same ``ladder``: what is given up when the memory does not do."""
        self._ladder = ladder or MemoryLadder()
        self._loop = loop
        self._pool = pool
        self._prefill = prefill
        self._cancel = cancel
        self._mailbox = TokenMailbox(pool.sequences, loop.positions.device, depth=4)
        self._running: dict[int, _Running] = {}
        # who was in which sequence when the tokens in the mailbox were chosen
        self._expected: deque[dict[int, _Running]] = deque()

    def run(self, replies: Sequence[Reply]) -> Generator[tuple[int, GenerationChunk], None, None]:
        """Chunks of the replies with their numbers, as they come.

        Raises:
            GenerationError: ``sampling.non_finite``.
        """
        waiting = deque(enumerate(replies))
        while waiting or self._running:
            while waiting and len(self._running) < self._pool.sequences:
                try:
                    self._check()
                    self._begin(*waiting[0])
                except CancelledError:
                    break
                waiting.popleft()
                yield from self._read()
            if self._cancel.is_set():
                yield from self._interrupt(waiting)
                return
            self._step()
            # One step behind: what is read now was chosen before the step under way.
            while len(self._expected) > 1 or (self._expected and not self._can_step()):
                yield from self._read()

    def _begin(self, number: int, reply: Reply) -> None:
        """Compute a prompt in a free sequence, and choose its first token.

        Raises:
            CancelledError: before anything of it was kept.
        """
        started = perf_counter()
        free = next(one for one in range(self._pool.sequences) if one not in self._running)
        logits = self._prefill(reply.history, KVCache(self._pool, free), self._check)
        loop = self._loop
        loop.sampler.begin(free, reply.history, reply.choice)
        loop.start(free, len(reply.history))
        self._mailbox.post(loop.sampler(logits, free))
        running = _Running(number, reply, len(reply.history), 1)
        self._running[free] = running
        self._expected.append({free: running})
        running.begun = started

    def _check(self) -> None:
        if self._cancel.is_set():
            raise CancelledError

    def _can_step(self) -> bool:
        return any(one.computed < one.reply.limit for one in self._running.values())

    def _step(self) -> None:
        """One more token of every reply that wants one."""
        active = {
            sequence: one
            for sequence, one in self._running.items()
            if one.computed < one.reply.limit
        }
        for sequence in self._running.keys() - active.keys():
            self._loop.pause(sequence)
        if not active:
            return
        longest = max(one.position for one in active.values())
        self._mailbox.post(self._ladder.attempt(lambda: self._loop.step(longest)))
        for one in active.values():
            one.position += 1
            one.computed += 1
        self._expected.append(active)

    def _read(self) -> Generator[tuple[int, GenerationChunk], None, None]:
        """The oldest tokens in the mailbox, for the replies that have not ended since."""
        started = perf_counter()
        tokens = self._mailbox.take()
        waited = perf_counter() - started
        for sequence, one in self._expected.popleft().items():
            if self._running.get(sequence) is not one:
                continue
            token = tokens[sequence]
            if token < 0:
                step = len(one.reply.history) - one.reply.prompt_tokens
                raise GenerationError("sampling.non_finite", step=step)
            clock = one.reply.clock
            if one.begun is not None:  # its first token
                clock.prefill_s = perf_counter() - one.begun
                one.begun = None
            else:
                clock.decode_s += waited
                clock.decoded += 1
            chunk = one.reply.push(Drawn(token, None))
            if chunk.finish_reason is not None:
                del self._running[sequence]
                self._loop.pause(sequence)
            yield one.number, chunk

    def _interrupt(
        self, waiting: deque[tuple[int, Reply]]
    ) -> Generator[tuple[int, GenerationChunk], None, None]:
        for one in self._running.values():
            yield one.number, one.reply.interrupt()
        for number, reply in waiting:
            yield number, reply.interrupt()
        self._running.clear()
        self._mailbox.clear()


def batch_capacity(replies: Sequence[Reply]) -> int:
    """Tokens that the longest of them may come to have."""
    return max(reply.prompt_tokens + reply.limit for reply in replies)


def batch_parts(
    decoder: Decoder,
    dtype: torch.dtype,
    replies: Sequence[Reply],
    sequences: int,
    *,
    use_graphs: bool,
    on_adjustment: AdjustmentCallback,
    beside: int = GPU_WORKSPACE_BYTES,
) -> tuple[KVPool, DecodeLoop]:
    """Caches of ``dtype`` for as many of ``sequences`` as fit, and a loop over them; ``beside``
    bytes of a GPU are left free.

    Raises:
        ResourceError: ``memory.exhausted``, when not even one fits.
    """
    capacity = batch_capacity(replies)
    device = decoder.device
    wished = sequences
    if device.type == "cuda":
        room = free_gpu_bytes(device) - beside
        fits = room // KVPool.bytes_needed(decoder.config, capacity, dtype)
        sequences = max(1, min(sequences, fits))
    if sequences < wished:
        on_adjustment("memory.fewer_sequences", {"sequences": sequences})
    while True:
        pool = None
        try:
            pool = KVPool(decoder.config, capacity, dtype, device, sequences)
            return pool, decode_loop(decoder, pool, use_graphs=use_graphs)
        except torch.OutOfMemoryError as error:
            if sequences == 1:
                raise out_of_memory(device, error) from None
        # Here and not above: the error holds the frames that hold what was made so far.
        if pool is not None:
            pool.release()
        torch.cuda.empty_cache()
        sequences //= 2
        on_adjustment("memory.fewer_sequences", {"sequences": sequences})
