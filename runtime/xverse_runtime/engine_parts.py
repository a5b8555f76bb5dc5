"""The parts of an engine, wired together for the place that a model fits in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from xverse_kernels.backend import KernelBackend
from xverse_runtime.config import EngineConfig, ModelConfig
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.decoding import decode_loop
from xverse_runtime.device import out_of_memory, set_threads
from xverse_runtime.expert_load import ExpertLoad
from xverse_runtime.fit import Fit, described, fit_model, may_round, select_kernels, why_wasted
from xverse_runtime.generation import Prefill
from xverse_runtime.kernel_versions import Usage
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.loading import LoadedWeights, load_weights, published_name
from xverse_runtime.mapped_files import MappedFiles
from xverse_runtime.memory_ladder import MemoryLadder
from xverse_runtime.model import Decoder
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.offload.offloaded_experts import ExpertOffload
from xverse_runtime.offload.pieces import GraphRecorder
from xverse_runtime.offload.piecewise_step import PiecewiseStep
from xverse_runtime.offload.setup import ModelPlan, build_offload, most_few
from xverse_runtime.offload.transfer import CudaQueues
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store.manifest import is_store
from xverse_runtime.types import AdjustmentCallback, ProgressCallback
from xverse_runtime.warm_up import WarmUp
from xverse_runtime.weights import ModelWeights

# Tokens computed between two looks at the cancel flag stay few on the CPU, where they are slow.
CPU_PREFILL_CHUNK = 128
# Every chunk reads all experts once more, so on a GPU few large ones are fastest.
GPU_PREFILL_CHUNK = 2048


@dataclass(frozen=True)
class EngineParts:
    """What computes, and what is to be said about it.

    Args:
        ladder: what is given up when the memory does not do.
        loop: chooses tokens on the device, where there is one.
        offload: the experts, where not all of them are on the device.
        plan: the memory plan, if one was made.
        use_graphs: whether CUDA graphs are wished for.
        use_lookup: whether proposals may be computed ahead.
        bytes_per_token: weights that one decoded token reads.
        memory: names of what is held for good, and bytes.
        notes: for those who want to know more.
    """

    decoder: Decoder
    cache: KVCache
    prefill: Prefill
    ladder: MemoryLadder
    loop: DecodeLoop | None
    offload: ExpertOffload | None
    plan: ModelPlan | None
    expert_load: ExpertLoad | None
    use_graphs: bool
    use_lookup: bool
    model_name: str
    device: str
    precision: str
    bytes_per_token: int
    memory: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


def load_parts(
    directory: ModelDirectory,
    model: ModelConfig,
    config: EngineConfig,
    wished_context: int,
    *,
    model_name: str | None,
    progress: ProgressCallback,
    on_adjustment: AdjustmentCallback,
) -> EngineParts:
    """Find the place for a model, and load it there; arguments as in `Engine.load`.

    Raises:
        XverseError: of the kind that fits.
    """

    def load_on(fit: Fit) -> EngineParts:
        if fit.context_length < wished_context:
            facts = {"wished": wished_context, "context_length": fit.context_length}
            on_adjustment("memory.smaller_context", facts)
        if fit.rounds:
            on_adjustment("memory.int8_cache", {})
        if fit.wasted is not None:
            on_adjustment("kernels.gpu_unused", {"reason": fit.wasted})
        elif not is_store(directory) and (reason := why_wasted(config, fit.device)) is not None:
            on_adjustment("kernels.slow", {"reason": reason})
        return _Loading(fit, directory, model, config, progress, on_adjustment).parts(model_name)

    fit = fit_model(directory, model, config, wished_context)
    try:
        return load_on(fit)
    except torch.OutOfMemoryError as error:
        if fit.offload is None or config.device != "auto":
            raise out_of_memory(fit.device, error) from None
        reason = str(error).split(". ")[0]
    # Not while the error is handled: it holds what was loaded so far.
    on_adjustment("offload.failed", {"reason": reason})
    return load_on(Fit(torch.device("cpu"), reason, wished_context))


@dataclass(frozen=True)
class _Loading:
    fit: Fit
    directory: ModelDirectory
    model: ModelConfig
    config: EngineConfig
    progress: ProgressCallback
    on_adjustment: AdjustmentCallback

    def parts(self, model_name: str | None) -> EngineParts:
        """Kernels are compiled while the weights load."""
        device, packed = self.fit.device, is_store(self.directory)
        kernels = select_kernels(self.config, self.model, device, packed=packed)
        with WarmUp(device, self.progress) as warm_up:
            parts = replace(self, progress=warm_up.tell)._parts(model_name, kernels, warm_up)
            warm_up.finish()
        return parts

    def _parts(
        self, model_name: str | None, kernels: KernelBackend, warm_up: WarmUp
    ) -> EngineParts:
        fit, model, config, device = self.fit, self.model, self.config, self.fit.device
        packed, on_gpu = is_store(self.directory), device.type == "cuda"
        ladder = MemoryLadder(
            self.on_adjustment, shrinks=config.context_length is None, rounds=may_round(config)
        )
        with MappedFiles() as files:
            loaded = self._weights(kernels, files, warm_up)
            threads = set_threads(config.threads, loaded.nbytes, device, kernels)
            pool = KVPool(model, fit.context_length, loaded.cache_dtype, device, later=True)
            cache = KVCache(pool)
            ladder.hold(pool, lambda: cache.length)
            # Slots are whatever memory is left: while loading they give way before the ladder.
            offload = ladder.attempt(lambda: self._offload(loaded, kernels, files))
        if offload is not None:
            ladder.hold_experts(offload)
        rotary = RotaryTable(model, pool.capacity, device)
        runners = None if offload is None else offload.runners
        decoder = Decoder(model, loaded.weights, kernels, rotary, runners)
        load = ExpertLoad(model, device) if model.is_moe else None
        loop = self._loop(decoder, pool, offload) if on_gpu else None
        if loop is not None:
            ladder.hold_steps(loop)
        kept_in = str(pool.dtype).removeprefix("torch.")
        kernels_note = described(kernels, config, model, device, packed=packed)
        return EngineParts(
            decoder=decoder,
            cache=cache,
            prefill=self._prefill(decoder, load, kernels, ladder),
            ladder=ladder,
            loop=loop,
            offload=offload,
            plan=fit.plan,
            expert_load=load,
            use_graphs=config.cuda_graph,
            use_lookup=config.lookup and kernels.exact_splits,
            model_name=model_name or model.source_name or published_name(self.directory),
            device=str(device),
            precision=loaded.precision,
            bytes_per_token=loaded.bytes_per_token,
            memory=(("weights", loaded.nbytes),),
            notes=(
                f"device: {device} ({fit.reason})",
                f"precision: {loaded.parts}",
                f"kernels: {kernels_note}, {threads} CPU thread{'s' if threads > 1 else ''}",
                f"context: {pool.capacity} tokens, KV cache {pool.nbytes / 2**20:.1f} MiB"
                f" ({kept_in})",
            ),
        )

    def _weights(
        self, kernels: KernelBackend, files: MappedFiles, warm_up: WarmUp
    ) -> LoadedWeights:
        plan = self.fit.offload

        def begin(weights: Callable[[], ModelWeights], cache: torch.dtype) -> None:
            few = None if plan is None else most_few(plan.placement, plan.machine)
            warm_up.begin(
                self.model, weights, Usage(cache, self.fit.context_length, self._chunk(), few)
            )

        return load_weights(
            self.directory,
            self.model,
            self.config.precision,
            self.fit.device,
            self.fit.context_length,
            self.progress,
            kernels=kernels.name,
            offload=self.fit.offload is not None,
            kv=self.fit.kv(self.config),
            files=files,
            on_opened=begin if self.fit.device.type == "cuda" else None,
        )

    def _offload(
        self, loaded: LoadedWeights, kernels: KernelBackend, files: MappedFiles
    ) -> ExpertOffload | None:
        if self.fit.offload is None:
            return None
        queues = CudaQueues(self.fit.device, kernels)
        try:
            return build_offload(
                loaded.weights,
                self.model,
                self.fit.offload,
                queues,
                kernels,
                files=files,
                threads=self.config.threads,
                progress=self.progress,
                on_adjustment=self.on_adjustment,
            )
        except BaseException:
            queues.close()
            raise

    def _loop(self, decoder: Decoder, pool: KVPool, offload: ExpertOffload | None) -> DecodeLoop:
        graphs = self.config.cuda_graph
        if offload is None:
            return decode_loop(decoder, pool, use_graphs=graphs)
        recorder = GraphRecorder(self.fit.device) if graphs else None

        def told_failure(error: RuntimeError) -> None:
            reason = str(error).split(". ")[0]
            self.on_adjustment("offload.no_graphs", {"reason": reason})

        step = PiecewiseStep(decoder, offload, recorder, told_failure)
        return decode_loop(decoder, pool, use_graphs=False, offloaded=step)

    def _prefill(
        self,
        decoder: Decoder,
        load: ExpertLoad | None,
        kernels: KernelBackend,
        ladder: MemoryLadder,
    ) -> Prefill:
        on_gpu, wished = self.fit.device.type == "cuda", self.config.prefill_chunk

        def told_chunk(size: int) -> None:
            self.on_adjustment("memory.smaller_chunk", {"tokens": size})

        paced = not on_gpu and kernels.exact_splits and wished is None
        return Prefill(decoder, self._chunk(), told_chunk, load, paced=paced, ladder=ladder)

    def _chunk(self) -> int:
        """The most tokens of a prompt that are computed at once."""
        if self.config.prefill_chunk:
            return self.config.prefill_chunk
        if self.fit.offload is not None:
            return self.fit.offload.placement.prefill_chunk
        return GPU_PREFILL_CHUNK if self.fit.device.type == "cuda" else CPU_PREFILL_CHUNK
