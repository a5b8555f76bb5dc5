"""`Engine`: the only place that wires the parts of the runtime together."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from xverse_runtime.batch import Batch, batch_parts
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import decode_loop
from xverse_runtime.device import (
    out_of_memory,
    set_threads,
)
from xverse_runtime.errors import (
    ContextOverflowError,
    ModelNotFoundError,
    UsageError,
)
from xverse_runtime.expert_load import ExpertLoad
from xverse_runtime.fit import Fit, described, fit_model, select_kernels
from xverse_runtime.generation import Generation, Prefill
from xverse_runtime.kept_caches import KeptCaches
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.loading import load_weights, published_name
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.offloaded_experts import ExpertOffload
from xverse_runtime.offload.pieces import GraphRecorder
from xverse_runtime.offload.piecewise_step import PiecewiseStep
from xverse_runtime.offload.recorder import RoutingRecorder
from xverse_runtime.offload.setup import ModelPlan, build_offload
from xverse_runtime.offload.statistics import OffloadStatistics
from xverse_runtime.offload.transfer import CudaQueues
from xverse_runtime.prediction import Prediction
from xverse_runtime.reply import Reply
from xverse_runtime.rope import RotaryTable
from xverse_runtime.sampling import check_params
from xverse_runtime.store.manifest import is_store
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

# Tokens computed between two looks at the cancel flag stay few on the CPU, where they are slow.
CPU_PREFILL_CHUNK = 128
# Every chunk reads all experts once more, so on a GPU few large ones are fastest.
GPU_PREFILL_CHUNK = 2048


class Engine:
    """A loaded model: text to ids, ids to a stream of chunks. One generation at a time."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        text: TextParts,
        *,
        model_name: str,
        device: str,
        precision: str,
        bytes_per_token: int,
        prefill: Prefill,
        notes: tuple[str, ...],
        memory: tuple[tuple[str, int], ...] = (),
        expert_load: ExpertLoad | None = None,
        loop: DecodeLoop | None = None,
        use_graphs: bool = True,
        use_lookup: bool = False,
        offload: ExpertOffload | None = None,
        plan: ModelPlan | None = None,
        on_adjustment: AdjustmentCallback = lambda _code, _facts: None,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._text = text
        self._loop = loop
        self._use_graphs = use_graphs
        self._use_lookup = use_lookup
        self._offload = offload
        self._plan = plan
        self._on_adjustment = on_adjustment
        self._prefill = prefill
        self._memory = memory
        self._expert_load = expert_load
        self._kept: KeptCaches | None = None
        self._running: Generator[GenerationChunk, None, None] | None = None
        self.model_name = model_name
        self.device = device
        self.precision = precision
        self.bytes_per_token = bytes_per_token  # weights that one decoded token reads
        self.notes = notes

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
                later: ``memory.smaller_context``, ``memory.smaller_chunk``,
                ``memory.fewer_sequences``.

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
        fit = fit_model(directory, model, config, wished_context)

        def load_on(fit: Fit) -> Engine:
            if fit.context_length < wished_context:
                facts = {"wished": wished_context, "context_length": fit.context_length}
                on_adjustment("memory.smaller_context", facts)
            return cls._load_on(
                fit,
                directory,
                model,
                config,
                text,
                model_name=model_name,
                progress=progress or _ignore,
                on_adjustment=on_adjustment,
            )

        try:
            return load_on(fit)
        except torch.OutOfMemoryError as error:
            if fit.offload is None or config.device != "auto":
                raise out_of_memory(fit.device, error) from None
            reason = str(error).split(". ")[0]
        on_adjustment("offload.failed", {"reason": reason})
        return load_on(Fit(torch.device("cpu"), reason, wished_context))

    @classmethod
    def _load_on(
        cls,
        fit: Fit,
        directory: ModelDirectory,
        model: ModelConfig,
        config: EngineConfig,
        text: TextParts,
        *,
        model_name: str | None,
        progress: ProgressCallback,
        on_adjustment: AdjustmentCallback,
    ) -> Engine:
        device, context_length = fit.device, fit.context_length
        packed = is_store(directory)
        kernels = select_kernels(config, model, device, packed=packed)
        kernels_note = described(kernels, config, packed=packed)
        on_gpu = device.type == "cuda"
        loaded = load_weights(
            directory,
            model,
            config.precision,
            device,
            context_length,
            progress,
            kernels=kernels.name,
            offload=fit.offload is not None,
            kv=fit.kv(config),
        )
        threads = set_threads(config.threads, loaded.nbytes, device, kernels)
        rotary = RotaryTable(model, context_length, device)
        chunk = GPU_PREFILL_CHUNK if on_gpu else CPU_PREFILL_CHUNK
        pool = KVPool(model, context_length, loaded.cache_dtype, device)
        load = ExpertLoad(model, device) if model.is_moe else None
        offload = None
        if fit.offload is not None:
            chunk = fit.offload.placement.prefill_chunk
            offload = build_offload(
                loaded.weights,
                model,
                fit.offload,
                CudaQueues(device),
                kernels,
                threads=config.threads,
                progress=progress,
                on_adjustment=on_adjustment,
            )
        runners = None if offload is None else offload.runners
        decoder = Decoder(model, loaded.weights, kernels, rotary, runners)

        step = None
        if offload is not None:
            recorder = GraphRecorder(device) if config.cuda_graph and on_gpu else None
            step = PiecewiseStep(decoder, offload, recorder)

        def told_chunk(size: int) -> None:
            on_adjustment("memory.smaller_chunk", {"tokens": size})

        return cls(
            decoder,
            KVCache(pool),
            text,
            loop=decode_loop(decoder, pool, use_graphs=config.cuda_graph, offloaded=step)
            if on_gpu
            else None,
            use_graphs=config.cuda_graph,
            offload=offload,
            plan=fit.plan,
            use_lookup=config.lookup and kernels.exact_splits,
            on_adjustment=on_adjustment,
            model_name=model_name or model.source_name or published_name(directory),
            device=str(device),
            precision=loaded.precision,
            bytes_per_token=loaded.bytes_per_token,
            prefill=Prefill(
                decoder,
                config.prefill_chunk or chunk,
                told_chunk,
                load,
                paced=not on_gpu and kernels.exact_splits and config.prefill_chunk is None,
            ),
            memory=(("weights", loaded.nbytes), ("cache", loaded.cache_bytes)),
            expert_load=load,
            notes=(
                f"device: {device} ({fit.reason})",
                f"precision: {loaded.parts}",
                f"kernels: {kernels_note}, {threads} CPU thread{'s' if threads > 1 else ''}",
                f"context: {context_length} tokens, KV cache {loaded.cache_bytes / 2**20:.1f} MiB"
                f" ({str(loaded.cache_dtype).removeprefix('torch.')})",
            ),
        )

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
            memory=(*self._memory, *kept),
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
            sequences: how many share a step; fewer, if the memory does not hold their caches.

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
        pool, loop = batch_parts(
            self._decoder,
            self._cache.pool.dtype,
            replies,
            min(sequences, len(replies)),
            use_graphs=self._use_graphs and self._offload is None,
            on_adjustment=self._on_adjustment,
        )
        for reply in replies:
            if not loop.sampler.can_draw(reply.choice):
                raise UsageError("batch.sampling", top_k=reply.params.top_k)
        prefill = Prefill(self._decoder, self._prefill.chunk)
        batch = Batch(loop, pool, prefill, cancel or CancelFlag())
        try:
            yield from batch.run(replies)
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
