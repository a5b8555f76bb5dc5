"""Plain data that crosses the runtime's border, and the protocol the command line talks to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:  # the command line's help must not wait for torch
    from torch import Tensor

    from xverse_runtime.offload.statistics import OffloadStatistics
    from xverse_runtime.prediction import Prediction

FinishReason = Literal["stop", "length", "interrupted"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation, as text."""

    role: Role
    content: str


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop.

    Filters apply in the order repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        temperature: 0 is greedy (the penalty still applies).
        top_k: 0 keeps all tokens.
        top_p: 1.0 keeps all tokens.
        min_p: 0.0 keeps all tokens; relative to the likeliest token.
        repetition_penalty: over prompt and output; 1.0 is off.
        max_new_tokens: upper bound; the context may end the text sooner.
        seed: ``None`` draws one at random.
        stop: strings that end the text; they are never part of it.
        logprobs: ``None`` for none, else how many alternatives to report for each token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 2048
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token under the plain model, before penalty, temperature and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts of one generation; cached tokens are part of the prompt's."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds and tokens per second of one generation; a rate is 0.0 when nothing was measured."""

    ttft_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0


@dataclass(frozen=True)
class EngineStatistics:
    """What an engine tells about itself beyond one reply; it leaves out what it does not know.

    Args:
        memory: bytes by part: ``weights``, ``cache``, ``kept`` (caches of other conversations).
        expert_load: for each layer, how often each expert was chosen since the model was loaded.
    """

    memory: tuple[tuple[str, int], ...] = ()
    expert_load: tuple[tuple[int, ...], ...] = ()


class Pass(NamedTuple):
    """A forward pass while decoding: tokens proposed beside the newest, and how many were right."""

    proposed: int
    accepted: int


@dataclass(frozen=True)
class GenerationChunk:
    """A step of a generation.

    ``text`` is released only when it is final: whole characters that cannot become part of a
    stop string. The last chunk, and only the last, has a ``finish_reason``, the usage, the
    timings and, when tokens were looked up, the passes. The end token is among ``token_ids`` when
    it ended the text.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    truncated: bool = False  # the context was full before max_new_tokens was reached
    seed: int = 0  # the seed in effect, also when it was drawn
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    passes: tuple[Pass, ...] = ()


class Drawn(NamedTuple):
    """A token, and the logits [vocab] it was chosen by where the host has them."""

    token: int
    logits: Tensor | None


# Told the code and the facts of a change that the engine made by itself, to word for the user.
AdjustmentCallback = Callable[[str, Mapping[str, object]], None]


class CancelFlag:
    """Set from a signal handler or a thread; read between layers and experts."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()


@dataclass(frozen=True)
class LoadProgress:
    """How far loading is, in bytes of weights; and in kernels, where some are compiled meanwhile,
    which may take longer."""

    done_bytes: int
    total_bytes: int
    done_kernels: int = 0
    total_kernels: int = 0


ProgressCallback = Callable[[LoadProgress], None]


@dataclass(frozen=True)
class TemplateChoice:
    """Which chat format was chosen and why.

    ``name`` is ``human-assistant``, ``system-user-assistant``, ``jinja`` or ``raw``. ``reason`` is
    a stable code that the command line words: ``template.requested``,
    ``template.tokenizer_config``, ``template.jinja_file``, ``template.modeling_file``,
    ``template.chat_name`` or ``template.base_model``. ``source`` is the file or name behind it.
    """

    name: str
    reason: str
    source: str = ""


class TextGenerator(Protocol):
    """What the command line needs of a model, whether it runs here or on a server."""

    @property
    def model_name(self) -> str: ...

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and reply may have together."""

    @property
    def default_sampling(self) -> SamplingParams:
        """The model's own settings (``generation_config.json``)."""

    @property
    def template_choice(self) -> TemplateChoice: ...

    @property
    def device(self) -> str:
        """Where the model runs, as torch writes it: ``cpu``, ``cuda:0``."""

    @property
    def precision(self) -> str:
        """Of the weights: ``fp32``, ``bf16``, ``fp16``, ``int8`` or ``int4``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Technical remarks for ``-v``: device, precision, kernel backend and why."""

    @property
    def offload_statistics(self) -> OffloadStatistics | None:
        """What was done so far with experts that the GPU cannot hold, where there are any."""

    def forecast(self, tokens: int) -> Prediction | None:
        """What was predicted of this model on this machine with a context of so many tokens, where
        a plan was made."""

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a raw prompt; special tokens written in the text are special tokens."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's next reply begins.

        Raises:
            UsageError: ``template.invalid_messages`` or ``template.render_failed``.
        """

    def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, cancel: CancelFlag | None = None
    ) -> Iterator[GenerationChunk]:
        """Stream the continuation of ``prompt_ids``.

        Closing the iterator, or setting ``cancel``, stops cleanly and keeps the cache valid.

        Raises:
            ContextOverflowError: ``context.overflow`` (prompt_tokens, context_length).
            GenerationError: ``sampling.non_finite``.
        """
