"""Weights from either kind of model directory, in the precision that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from xverse_kernels.packing import BF16, FP16
from xverse_runtime.checkpoint import read_checkpoint
from xverse_runtime.config import ModelConfig
from xverse_runtime.device import DTYPES, QUANTISED, check_memory, select_precision
from xverse_runtime.errors import DeviceError, UsageError
from xverse_runtime.kv_cache import KVPool, cache_dtype
from xverse_runtime.link import link_to
from xverse_runtime.mapped_files import MappedFiles
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.placement import place_weights
from xverse_runtime.store.manifest import Manifest, is_store
from xverse_runtime.store.precision import PRESETS, bytes_per_token
from xverse_runtime.store.weights import open_store
from xverse_runtime.tensors import EMBEDDING, expected_tensors
from xverse_runtime.types import LoadProgress, ProgressCallback
from xverse_runtime.upload import Uploader
from xverse_runtime.weights import ModelWeights, assemble_weights


@dataclass(frozen=True)
class LoadedWeights:
    """``cache_dtype`` is that of keys and values; ``precision`` that of the weights, ``parts`` the
    same in more words; ``nbytes`` is what they take as they were published or packed."""

    weights: ModelWeights
    cache_dtype: torch.dtype
    precision: str
    parts: str
    cache_bytes: int
    nbytes: int
    bytes_per_token: int


def published_name(directory: ModelDirectory) -> str:
    """What the model is called: a store remembers the name of its source."""
    if not is_store(directory):
        return directory.display_name
    return Manifest.read(directory).source.get("name", directory.display_name)


def weight_bytes(directory: ModelDirectory, config: ModelConfig, precision: str) -> int:
    """What the weights take on a GPU; nothing is read but a store's manifest."""
    if is_store(directory):
        return sum(record.bytes for record in Manifest.read(directory).files.values())
    parameters = sum(prod(shape) for shape in expected_tensors(config).values())
    return parameters * (4 if precision == "fp32" else 2)


def load_weights(
    directory: ModelDirectory,
    config: ModelConfig,
    precision: str,
    device: torch.device,
    context_length: int,
    progress: ProgressCallback,
    *,
    kernels: str = "reference",
    kv: str = "auto",
    offload: bool = False,
    files: MappedFiles | None = None,
) -> LoadedWeights:
    """Load what `directory` holds.

    Args:
        directory: a published checkpoint or a store.
        config: the model's.
        precision: as in `EngineConfig`. For a store, ``int8`` and ``int4`` must be what it was
            made with, and a float precision is that of the activations.
        device: where to compute.
        context_length: for the size of the KV cache.
        progress: told the bytes of weights loaded.
        kernels: name of the backend, which decides on the form of the weights.
        kv: what keys and values are kept in, as in `EngineConfig`.
        offload: leave a store's experts and embedding mapped, for a GPU that cannot hold all.
        files: told what is mapped; then a GPU's weights are read from the files.

    Raises:
        IntegrityError: ``checkpoint.corrupt`` and whatever else is wrong with the files.
        UsageError: ``precision.needs_conversion``, ``precision.other_store``,
            ``precision.unsupported`` or ``kv.unsupported``.
    """
    if is_store(directory):
        return _load_store(
            directory,
            config,
            precision,
            device,
            context_length,
            progress,
            kernels,
            kv,
            offload,
            files,
        )
    return _load_checkpoint(
        directory, config, precision, device, context_length, progress, kernels, kv, files
    )


def _load_checkpoint(
    directory: ModelDirectory,
    config: ModelConfig,
    requested: str,
    device: torch.device,
    context_length: int,
    progress: ProgressCallback,
    kernels: str,
    kv: str,
    files: MappedFiles | None,
) -> LoadedWeights:
    if requested in QUANTISED:
        path = str(directory.path)
        raise UsageError("precision.needs_conversion", precision=requested, model=path)
    blocks = kernels == "triton"
    tensors = read_checkpoint(directory, config, files if blocks else None)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    precision = select_precision(requested, config.dtype, parameters, device)
    dtype = DTYPES[precision]
    cached = cache_dtype(kv, dtype)
    cache_bytes = KVPool.bytes_needed(config, context_length, cached)
    check_memory(tensors.values(), cache_bytes, dtype, device)
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(LoadProgress(done, total))

    if blocks:
        published = tensors[EMBEDDING].dtype
        views = assemble_weights(tensors, config, published, torch.device("cpu"))
        form = BF16 if dtype == torch.bfloat16 else FP16
        with Uploader(link_to(device), files, tell) as uploader:
            weights = place_weights(views, form, dtype, uploader)
    else:
        weights = assemble_weights(tensors, config, dtype, device, tell)
    per_token = bytes_per_token(config, PRESETS["bf16"]) * dtype.itemsize // 2
    return LoadedWeights(weights, cached, precision, precision, cache_bytes, total, per_token)


def _load_store(
    directory: ModelDirectory,
    config: ModelConfig,
    requested: str,
    device: torch.device,
    context_length: int,
    progress: ProgressCallback,
    kernels: str,
    kv: str,
    offload: bool,
    files: MappedFiles | None,
) -> LoadedWeights:
    manifest = Manifest.read(directory)
    made = manifest.precision.experts
    if requested in QUANTISED and requested != made:
        raise UsageError("precision.other_store", precision=requested, stored=made)
    blocks, host = kernels == "triton", kernels == "cpu"
    if device.type != "cpu" and not blocks:
        reason = "packed weights need the Triton kernels there"
        raise DeviceError("device.unavailable", device=device.type, reason=reason)
    total = sum(record.bytes for record in manifest.files.values())
    float_wish = "auto" if requested in QUANTISED else requested
    parameters = sum(prod(shape) for shape in expected_tensors(config).values())
    dtype_name = select_precision(float_wish, "bfloat16", parameters, device)
    dtype = usual = DTYPES[dtype_name]
    if host:  # they keep activations in fp32, and read a cache of either
        usual = torch.float32 if dtype == torch.float32 else torch.bfloat16
        dtype, dtype_name = torch.float32, "fp32 with int8 products"
    cached = cache_dtype(kv, usual)
    cache_bytes = KVPool.bytes_needed(config, context_length, cached)
    if not offload:  # the plan has seen to it
        check_memory([], cache_bytes + (total if blocks else 0), dtype, device)
    mapped_files = files if blocks else None
    as_stored = host or blocks  # converted on the way
    weights = open_store(
        directory, config, manifest, dtype, as_stored=as_stored, files=mapped_files
    )
    if blocks:
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            progress(LoadProgress(done, total))

        with Uploader(link_to(device), files, tell) as uploader:
            weights = place_weights(weights, BF16, dtype, uploader, offload=offload)
    if not offload:  # then the experts are still to come
        progress(LoadProgress(total, total))
    parts = manifest.precision
    words = f"experts {made}, attention {parts.attention}, head {parts.head}, maths {dtype_name}"
    per_token = bytes_per_token(config, parts)
    return LoadedWeights(weights, cached, made, words, cache_bytes, total, per_token)
