"""From the tokens of one reply to what its reader sees."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from xverse_kernels.types import TokenChoice
from xverse_runtime.sampling import token_logprob
from xverse_runtime.stop import StopMatcher
from xverse_runtime.tokenizer import StreamDecoder, Tokenizer
from xverse_runtime.types import (
    Drawn,
    FinishReason,
    GenerationChunk,
    Pass,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
)


@dataclass
class Clock:
    """Time spent computing, without what the consumer does between two chunks."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    decoded: int = 0

    def timings(self, computed_prompt_tokens: int) -> Timings:
        """Rates of a reply whose prompt had so many tokens that were not cached."""
        return Timings(
            ttft_s=self.prefill_s,
            prefill_tokens_per_s=_rate(computed_prompt_tokens, self.prefill_s),
            decode_tokens_per_s=_rate(self.decoded, self.decode_s),
        )


class Reply:
    """The growing reply to one prompt: when it ends, and its text as it becomes final."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        end_token_ids: Sequence[int],
        capacity: int,
        cached: int = 0,
    ) -> None:
        """``capacity``: places for prompt and reply, more than the prompt has tokens.

        ``cached``: tokens of the prompt that need not be computed.
        """
        self.history = list(prompt_ids)
        self.prompt_tokens = len(prompt_ids)
        self.params = params
        room = capacity - len(prompt_ids)
        self.limit = min(params.max_new_tokens, room)
        self.clock = Clock()
        self.passes: Sequence[Pass] = ()  # set by who computes several tokens at once
        self._limited_by_context = room < params.max_new_tokens
        self._cached = cached
        self._end_token_ids = frozenset(end_token_ids)
        self.seed = secrets.randbelow(2**32) if params.seed is None else params.seed
        self._stream = StreamDecoder(tokenizer)
        self._stops = StopMatcher(params.stop)

    @property
    def choice(self) -> TokenChoice:
        """How its tokens are chosen."""
        params = self.params
        return TokenChoice(
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            self.seed,
        )

    def push(self, drawn: Drawn) -> GenerationChunk:
        """The next token; the chunk has a finish reason when it is the last."""
        token, row = drawn
        self.history.append(token)
        alternatives = self.params.logprobs
        logprobs: tuple[TokenLogprob, ...] = ()
        if alternatives is not None:
            assert row is not None
            logprobs = (token_logprob(row, token, alternatives),)
        if token in self._end_token_ids:
            return self._last_chunk("", token, logprobs, "stop")
        text = self._stops.push(self._stream.push(token))
        if self._stops.stopped:
            return self._chunk(text, (token,), logprobs, "stop")
        if self._completion_tokens >= self.limit:
            return self._last_chunk(text, token, logprobs, "length")
        return self._chunk(text, (token,), logprobs)

    def interrupt(self) -> GenerationChunk:
        """The last chunk of a reply that is broken off.

        Bytes of an unfinished character are dropped: what is kept reads cleanly.
        """
        return self._chunk(self._stops.flush(), finish_reason="interrupted")

    @property
    def _completion_tokens(self) -> int:
        return len(self.history) - self.prompt_tokens

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
            return GenerationChunk(text, token_ids, logprobs, seed=self.seed)
        return GenerationChunk(
            text,
            token_ids,
            logprobs,
            finish_reason,
            truncated=finish_reason == "length" and self._limited_by_context,
            seed=self.seed,
            usage=Usage(self.prompt_tokens, self._completion_tokens, self._cached),
            timings=self.clock.timings(self.prompt_tokens - self._cached),
            passes=tuple(self.passes),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
