"""The loop of one generation: prefill in chunks, then token by token."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from xverse_kernels.types import TokenChoice
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import Decoding, DeviceDecoding, Drawn, HostDecoding
from xverse_runtime.kv_cache import KVCache
from xverse_runtime.model import Decoder
from xverse_runtime.sampling import token_logprob
from xverse_runtime.stop import StopMatcher
from xverse_runtime.tokenizer import StreamDecoder, Tokenizer
from xverse_runtime.types import (
    CancelFlag,
    FinishReason,
    GenerationChunk,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
)


class _CancelledError(Exception):
    """Raised inside a forward pass when the cancel flag is set."""


@dataclass
class _Clock:
    """Time spent computing, without what the consumer does between two chunks."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    decoded: int = 0

    def timings(self, computed_prompt_tokens: int) -> Timings:
        return Timings(
            ttft_s=self.prefill_s,
            prefill_tokens_per_s=_rate(computed_prompt_tokens, self.prefill_s),
            decode_tokens_per_s=_rate(self.decoded, self.decode_s),
        )


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
        prefill_chunk: int,
        cancel: CancelFlag,
        loop: DecodeLoop | None = None,
    ) -> None:
        """``prompt_ids`` must be fewer than the cache's capacity; ``params`` checked.

        With a ``loop``, tokens are chosen on its device where it can.
        """
        self._decoder = decoder
        self._cache = cache
        self._params = params
        self._end_token_ids = frozenset(end_token_ids)
        self._prefill_chunk = prefill_chunk
        self._cancel = cancel
        self._loop = loop
        self._history = list(prompt_ids)
        self._prompt_tokens = len(prompt_ids)
        room = cache.capacity - len(prompt_ids)
        self._limit = min(params.max_new_tokens, room)
        self._limited_by_context = room < params.max_new_tokens
        # The last prompt token is always computed: its logits choose the first new one.
        self._cached = min(cache.common_prefix(prompt_ids), len(prompt_ids) - 1)
        self._seed = secrets.randbelow(2**32) if params.seed is None else params.seed
        self._stream = StreamDecoder(tokenizer)
        self._stops = StopMatcher(params.stop)
        self._clock = _Clock()

    def chunks(self) -> Generator[GenerationChunk, None, None]:
        """A chunk a token; the last one has the finish reason."""
        try:
            started = perf_counter()
            decoding = self._start(self._prefill())
            drawn = decoding.next()
            self._clock.prefill_s = perf_counter() - started
            while True:
                started = perf_counter()
                chunk = self._chunk_of(drawn)
                self._clock.decode_s += perf_counter() - started
                yield chunk
                if chunk.finish_reason is not None:
                    return
                started = perf_counter()
                drawn = decoding.next()
                self._clock.decode_s += perf_counter() - started
                self._clock.decoded += 1
        except _CancelledError:
            # Bytes of an unfinished character are dropped: what is kept reads cleanly.
            yield self._chunk(self._stops.flush(), finish_reason="interrupted")

    def _prefill(self) -> Tensor:
        """Compute what of the prompt is not cached; logits [1, vocab] after its last token."""
        self._cache.truncate(self._cached)
        logits = torch.empty(0)
        for start in range(self._cached, self._prompt_tokens, self._prefill_chunk):
            end = min(start + self._prefill_chunk, self._prompt_tokens)
            last = end == self._prompt_tokens
            logits = self._decoder.forward(
                self._history[start:end],
                self._cache,
                logits_for=slice(-1, None) if last else slice(0),
                between=self._raise_if_cancelled,
            )
        return logits

    def _start(self, logits: Tensor) -> Decoding:
        params, loop = self._params, self._loop
        choice = TokenChoice(
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            self._seed,
        )
        check = self._raise_if_cancelled
        if loop is not None and params.logprobs is None and loop.sampler.can_draw(choice):
            return DeviceDecoding(
                loop, self._cache, logits, self._history, choice, self._limit, check
            )
        return HostDecoding(
            self._decoder, self._cache, logits, self._history, params, self._seed, check
        )

    def _raise_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise _CancelledError

    def _chunk_of(self, drawn: Drawn) -> GenerationChunk:
        token, row = drawn
        self._history.append(token)
        alternatives = self._params.logprobs
        logprobs: tuple[TokenLogprob, ...] = ()
        if alternatives is not None:
            assert row is not None
            logprobs = (token_logprob(row, token, alternatives),)
        if token in self._end_token_ids:
            return self._last_chunk("", token, logprobs, "stop")
        text = self._stops.push(self._stream.push(token))
        if self._stops.stopped:
            return self._chunk(text, (token,), logprobs, "stop")
        if self._completion_tokens >= self._limit:
            return self._last_chunk(text, token, logprobs, "length")
        return self._chunk(text, (token,), logprobs)

    @property
    def _completion_tokens(self) -> int:
        return len(self._history) - self._prompt_tokens

    def _last_chunk(
        self,
        text: str,
        token: int,
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason,
    ) -> GenerationChunk:
        """The chunk that also releases everything held back."""
        text += self._stops.push(self._stream.flush())
        text += self._stops.flush()
        return self._chunk(text, (token,), logprobs, reason)

    def _chunk(
        self,
        text: str,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        finish_reason: FinishReason | None = None,
    ) -> GenerationChunk:
        if finish_reason is None:
            return GenerationChunk(text, token_ids, logprobs, seed=self._seed)
        return GenerationChunk(
            text,
            token_ids,
            logprobs,
            finish_reason,
            truncated=finish_reason == "length" and self._limited_by_context,
            seed=self._seed,
            usage=Usage(self._prompt_tokens, self._completion_tokens, self._cached),
            timings=self._clock.timings(self._prompt_tokens - self._cached),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
