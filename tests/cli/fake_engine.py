"""A scripted model: no weights, a token a character, replies, delays and failures on order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xverse_runtime.errors import ContextOverflowError, XverseError
from xverse_runtime.types import (
    CancelFlag,
    GenerationChunk,
    Message,
    SamplingParams,
    TemplateChoice,
    Timings,
    TokenLogprob,
    Usage,
)


@dataclass
class FakeEngine:
    """Gives ``replies`` one after the other, the last one for ever.

    Args:
        prefill_s: time before the first character.
        token_s: time before every character.
        fail: raised instead of a reply, once for each error.
        deaf: pays no attention to the cancel flag.
        prompts: what it was asked, as text; ``params`` how.
    """

    replies: Sequence[str] = ("Hello there.",)
    context_length: int = 4096
    prefill_s: float = 0.0
    token_s: float = 0.0
    fail: list[XverseError] = field(default_factory=list)
    deaf: bool = False
    template: str = "human-assistant"
    model_name: str = "fake"
    device: str = "imaginary:0"
    precision: str = "bf16"
    notes: tuple[str, ...] = ("device: imaginary",)
    default_sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(temperature=0.5, top_k=30, max_new_tokens=100)
    )
    prompts: list[str] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)

    @property
    def offload_statistics(self) -> None:
        return None

    def forecast(self, tokens: int) -> None:
        return None

    @property
    def template_choice(self) -> TemplateChoice:
        return TemplateChoice(self.template, "template.chat_name", self.model_name)

    def encode_prompt(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        lines = [f"{message.role}: {message.content}\n" for message in messages]
        if messages[-1].role == "assistant":  # to be gone on with
            return self.encode_prompt("".join(lines).removesuffix("\n"))
        return self.encode_prompt("".join(lines) + "assistant: ")

    def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, cancel: CancelFlag | None = None
    ) -> Iterator[GenerationChunk]:
        if len(prompt_ids) >= self.context_length:
            raise ContextOverflowError(
                "context.overflow",
                prompt_tokens=len(prompt_ids),
                context_length=self.context_length,
            )
        if self.fail:
            raise self.fail.pop(0)
        self.prompts.append("".join(map(chr, prompt_ids)))
        self.params.append(params)
        reply = self.replies[min(len(self.prompts), len(self.replies)) - 1]
        return self._chunks(reply, len(prompt_ids), params, cancel or CancelFlag())

    def _chunks(
        self, reply: str, prompt_tokens: int, params: SamplingParams, cancel: CancelFlag
    ) -> Iterator[GenerationChunk]:
        room = self.context_length - prompt_tokens
        limit = min(len(reply), params.max_new_tokens, room)
        seed = 7 if params.seed is None else params.seed
        said = 0
        cancelled = self._wait(self.prefill_s, cancel)
        for character in reply[:limit]:
            cancelled = cancelled or self._wait(self.token_s, cancel)
            if cancelled:
                break
            said += 1
            alternatives = tuple((i, -1.0 - i) for i in range(params.logprobs or 0))
            logprob = TokenLogprob(ord(character), -0.5, alternatives)
            logprobs = () if params.logprobs is None else (logprob,)
            yield GenerationChunk(character, (ord(character),), logprobs, seed=seed)
        reason = "interrupted" if cancelled else "stop" if limit == len(reply) else "length"
        yield GenerationChunk(
            finish_reason=reason,  # type: ignore[arg-type]
            truncated=reason == "length" and limit == room,
            seed=seed,
            usage=Usage(prompt_tokens, said, 3),
            timings=Timings(0.25, 100.0, 20.0),
        )

    def _wait(self, seconds: float, cancel: CancelFlag) -> bool:
        """Whether the wait was cut short by ``cancel``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.deaf or not cancel.is_set()):
            time.sleep(min(0.005, seconds))
        return cancel.is_set() and not self.deaf
