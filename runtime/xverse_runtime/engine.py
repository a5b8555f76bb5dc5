"""`Engine`: the only place that wires the parts of the runtime together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from xverse_runtime.batch import Batch, batch_capacity, batch_parts
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.device import GPU_WORKSPACE_BYTES, out_of_memory
from xverse_runtime.engine_parts import EngineParts, load_parts
from xverse_runtime.errors import (
    ContextOverflowError,
    ModelNotFoundError,
    UsageError,
)
from xverse_runtime.generation import Generation, Prefill
from xverse_runtime.kept_caches import KeptCaches
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.lending import lent_slots
from xverse_runtime.offload.recorder import RoutingRecorder
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.prediction import Prediction
from xverse_runtime.reply import Reply
from xverse_runtime.sampling import check_params
from xverse_runtime.text_parts import TextParts, load_text_parts
from xverse_runtime.tokenizer import Tokenizer
from xverse_runtime.types import (
    AdjustmentCallback,
    CancelFlag,
    EngineStatistics,
    GenerationChunk,
    LoadProgress,
    Message,
    ProgressCallback,
    SamplingParams,
    TemplateChoice,
)


class Engine:
    """A loaded model: text to ids, ids to a stream of chunks. One generation at a time."""

    def __init__(
        self,
        parts: EngineParts,
        text: TextParts,
        on_adjustment: AdjustmentCallback = lambda _code, _facts: None,
    ) -> None:
        """``on_adjustment``: see `load`, which makes the parts."""
        self._decoder = parts.decoder
        self._cache = parts.cache
        self._text = text
        self._loop = parts.loop
        self._use_graphs = parts.use_graphs
        self._use_lookup = parts.use_lookup
        self._offload = parts.offload
        self._plan = parts.plan
        self._on_adjustment = on_adjustment
        self._prefill = parts.prefill
        self._ladder = parts.ladder
        self._memory = parts.memory
        self._expert_load = parts.expert_load
        self._kept: KeptCaches | None = None
        self._running: Generator[GenerationChunk, None, None] | None = None
        self.model_name = parts.model_name
        self.device = parts.device
        self.precision = parts.precision
        self.bytes_per_token = parts.bytes_per_token  # weights that one decoded token reads
        self.notes = parts.notes

    @classmethod
    def load(
        cls,
        path: Path | str,
        config: EngineConfig | None = None,
        *,
        model_name: str | None = None,
        progress: ProgressCallback | None = None,
        on_adjustment: AdjustmentCallback = lambda _code, _facts: None,
    ) -> Engine:
        """Load a model from a local directory: the published layout, or a store.

        Args:
            path: the directory.
            config: device, precision, context and so on.
            model_name: what to call it; also tells chat models from base models.
            progress: told the bytes of weights loaded so far.
            on_adjustment: told what the engine does by itself when memory is short, now and
                later: ``memory.smaller_chunk``, ``memory.smaller_context``,
                ``memory.int8_cache``, ``offload.fewer_slots``, ``memory.fewer_sequences``,
                ``offload.lent_slots``.

        Raises:
            XverseError: of the kind that fits; nothing else for bad files or requests.
        """
        config = config or EngineConfig()
        directory = ModelDirectory.open(path)
        if not directory.has("config.json"):
            raise ModelNotFoundError("model.no_config", path=str(directory.path))
        model = ModelConfig.from_dir(directory)
        wished_context = _context_length(model, config)
        text = load_text_parts(directory, model, config, model_name)
        parts = load_parts(
            directory,
            model,
            config,
            wished_context,
            model_name=model_name,
            progress=progress or _ignore,
            on_adjustment=on_adjustment,
        )
        return cls(parts, text, on_adjustment)

    @property
    def context_length(self) -> int:
        return self._cache.capacity

    @property
    def offload_statistics(self) -> OffloadStatistics | None:
        """What expert offload did so far, where some experts are not on the GPU. A copy."""
        return None if self._offload is None else replace(self._offload.statistics)

    def forecast(self, tokens: int) -> Prediction | None:
        """See `TextGenerator`."""
        return None if self._plan is None else self._plan.forecast(tokens)

    @property
    def default_sampling(self) -> SamplingParams:
        return self._text.default_sampling

    @property
    def template_choice(self) -> TemplateChoice:
        return self._text.template_choice

    @property
    def vocab_size(self) -> int:
        """How many ids the model knows; its tokenizer may know fewer."""
        return self._decoder.config.vocab_size

    def keep_conversations(self) -> None:
        """From now on, keep what was computed of a conversation while another one is answered, as
        far as free memory goes."""
        self._kept = KeptCaches()

    def statistics(self) -> EngineStatistics:
        """What is known now; the experts' load is that of the prompts so far."""
        kept = () if self._kept is None else (("kept", self._kept.nbytes),)
        return EngineStatistics(
            memory=(*self._memory, ("cache", self._cache.pool.nbytes), *kept),
            expert_load=self._expert_load.counts if self._expert_load else (),
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._text.tokenizer

    def encode_prompt(self, text: str) -> list[int]:
        """See `TextGenerator`."""
        return self._text.tokenizer.encode(text, parse_special=True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """See `TextGenerator`."""
        return self._text.chat_format.encode(messages, self._text.tokenizer)

    def record_routing(self, path: Path) -> RoutingRecorder:
        """Have `generate` write to a file which experts its tokens go to, from now on.

        Every token is then computed once, alone and by the host: no prompt lookup, no CUDA graphs.

        Returns:
            What to close when it is over; nothing can be generated after that.

        Raises:
            UsageError: ``trace.no_experts``, ``trace.unwritable``, ``trace.shape``.
        """
        config = self._decoder.config
        if not config.is_moe:
            raise UsageError("trace.no_experts", model=self.model_name)
        recorder = RoutingRecorder(path, config, self.model_name)
        self._decoder.observer = recorder
        return recorder

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        cancel: CancelFlag | None = None,
        *,
        ignore_end: bool = False,
        lookup: bool = True,
    ) -> Generator[GenerationChunk, None, None]:
        """See `TextGenerator`. A generation that is still running ends here.

        With ``ignore_end`` the end token is a token like any other: for measuring. Without
        ``lookup`` every pass computes one token, whatever the engine was told.
        """
        params = params or self.default_sampling
        check_params(params)
        self._check_prompt(prompt_ids)
        if self._running is not None:
            self._running.close()
        self._restore()
        if self._kept is not None:
            self._kept.prepare(self._cache, prompt_ids)
        observed = self._decoder.observer is not None
        generation = Generation(
            self._decoder,
            self._cache,
            self._text.tokenizer,
            prompt_ids,
            params,
            end_token_ids=() if ignore_end else self._text.end_token_ids,
            prefill=self._prefill,
            cancel=cancel or CancelFlag(),
            loop=None if observed else self._loop,
            lookup=lookup and self._use_lookup and not observed,
            ladder=self._ladder,
        )
        self._running = generation.chunks()
        return self._running

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams] | SamplingParams | None = None,
        cancel: CancelFlag | None = None,
        *,
        sequences: int = 8,
    ) -> Generator[tuple[int, GenerationChunk], None, None]:
        """Several replies at once, each with its own settings.

        Args:
            prompts: ids of each prompt.
            params: for each prompt, or one for all; by default the model's own.
            cancel: breaks all of them off.
            sequences: how many share a step; fewer, if the memory does not hold their caches. A
                GPU full of experts lends up to half of their slots for that, meanwhile.

        Yields:
            The number of a prompt and a chunk of its reply, as they come.

        Raises:
            UsageError: as `generate`; ``batch.no_logprobs``, ``batch.sampling``.
            ResourceError: ``memory.exhausted``, when not even one sequence fits.
        """
        if sequences < 1:
            raise UsageError("batch.sequences", sequences=sequences)
        of_each = (
            [params or self.default_sampling] * len(prompts)
            if params is None or isinstance(params, SamplingParams)
            else list(params)
        )
        replies = []
        for ids, one in zip(prompts, of_each, strict=True):
            check_params(one)
            self._check_prompt(ids)
            if one.logprobs is not None:
                raise UsageError("batch.no_logprobs")
            replies.append(self._reply(ids, one))
        if self._running is not None:
            self._running.close()
        if not replies:
            return
        self._restore()
        sequences = min(sequences, len(replies))
        offload, plan = self._offload, self._plan
        if offload is None or plan is None:
            yield from self._batch(replies, sequences, cancel)
            return
        beside, dtype = plan.placement.workspace, self._cache.pool.dtype
        capacity = batch_capacity(replies)
        caches = KVPool.bytes_needed(self._decoder.config, capacity, dtype, sequences)
        try:
            with lent_slots(offload, caches, beside, self._on_adjustment, self._ladder):
                yield from self._batch(replies, sequences, cancel, beside)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self._decoder.device, error) from None

    def _batch(
        self,
        replies: Sequence[Reply],
        sequences: int,
        cancel: CancelFlag | None,
        beside: int = GPU_WORKSPACE_BYTES,
    ) -> Generator[tuple[int, GenerationChunk], None, None]:
        pool, loop = batch_parts(
            self._decoder,
            self._cache.pool.dtype,
            replies,
            sequences,
            use_graphs=self._use_graphs and self._offload is None,
            on_adjustment=self._on_adjustment,
            beside=beside,
        )
        for reply in replies:
            if not loop.sampler.can_draw(reply.choice):
                raise UsageError("batch.sampling", top_k=reply.params.top_k)
        prefill = Prefill(self._decoder, self._prefill.chunk, ladder=self._ladder)
        batch = Batch(loop, pool, prefill, cancel or CancelFlag(), self._ladder)
        with self._ladder.holding(pool, loop):
            try:
                yield from batch.run(replies)
            except torch.OutOfMemoryError as error:
                raise out_of_memory(self._decoder.device, error) from None
            finally:
                pool.release()

    def _restore(self) -> None:
        """Take memory for what was given up, if the last generation ended before that was done.

        Raises:
            ResourceError: ``memory.exhausted``.
        """
        try:
            self._ladder.attempt(lambda: None)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self._decoder.device, error) from None

    def _reply(self, prompt_ids: Sequence[int], params: SamplingParams) -> Reply:
        return Reply(
            self._text.tokenizer,
            prompt_ids,
            params,
            end_token_ids=self._text.end_token_ids,
            capacity=self.context_length,
        )

    def _check_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise UsageError("prompt.empty")
        outside = next((one for one in prompt_ids if not 0 <= one < self.vocab_size), None)
        if outside is not None:
            raise UsageError("prompt.bad_token", token_id=outside, vocab_size=self.vocab_size)
        if len(prompt_ids) >= self.context_length:
            raise ContextOverflowError(
                "context.overflow",
                prompt_tokens=len(prompt_ids),
                context_length=self.context_length,
            )


def _context_length(model: ModelConfig, config: EngineConfig) -> int:
    if config.context_length is None:
        return model.trained_context
    if not 1 <= config.context_length <= model.maximum_context:
        raise UsageError(
            "context.too_long", requested=config.context_length, maximum=model.maximum_context
        )
    return config.context_length


def _ignore(_progress: LoadProgress) -> None:
    pass
