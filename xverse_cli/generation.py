"""One generation, collected: what `generate` prints and the chat keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from xverse_cli.settings import Settings
from xverse_runtime.types import (
    CancelFlag,
    FinishReason,
    GenerationChunk,
    SamplingParams,
    TextGenerator,
    TokenLogprob,
)

# Setting: field of SamplingParams.
SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_tokens": "max_new_tokens",
    "seed": "seed",
}


@dataclass
class Reply:
    """The chunks of a generation put together; complete or as far as it came."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: GenerationChunk = field(default_factory=GenerationChunk)

    def add(self, chunk: GenerationChunk) -> None:
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.last = chunk

    @property
    def finish_reason(self) -> FinishReason:
        return self.last.finish_reason or "interrupted"


def sampling_params(
    defaults: SamplingParams,
    settings: Settings,
    *,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
) -> SamplingParams:
    """The model's own settings with the user's in their place."""
    values: dict[str, Any] = {
        name: getattr(settings, key)
        for key, name in SAMPLING.items()
        if getattr(settings, key) is not None
    }
    return replace(defaults, **values, stop=(*defaults.stop, *stop), logprobs=logprobs)


def sampling_settings(params: SamplingParams, seed: int) -> dict[str, object]:
    """The settings of a reply under the names users give them."""
    values = {key: getattr(params, name) for key, name in SAMPLING.items()}
    return {**values, "seed": seed, "stop": list(params.stop)}


def params_of_settings(settings: Mapping[str, Any]) -> SamplingParams:
    """The other way round: what `sampling_settings` gave, as it was saved."""
    values = {name: settings[key] for key, name in SAMPLING.items()}
    return SamplingParams(**values, stop=tuple(settings["stop"]))


def run_generation(
    engine: TextGenerator,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    cancel: CancelFlag,
    write: Callable[[str], None],
    reply: Reply,
) -> None:
    """Generate into ``reply``, passing each piece of text to ``write`` as it comes.

    ``reply`` holds what came so far even when this is left by an exception.
    """
    with closing(_closable(engine.generate(prompt_ids, params, cancel))) as chunks:
        for chunk in chunks:
            reply.add(chunk)
            write(chunk.text)


def _closable(chunks: Any) -> Any:
    # The protocol promises an iterator; the engine's is a generator, which must be closed.
    return chunks if hasattr(chunks, "close") else (chunk for chunk in chunks)
