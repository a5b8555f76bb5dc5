"""Stores of random weights in the true shapes, for measuring speed without the published files.

Integers are uniform random bits and scales have random signs, so every weight has mean 0 and the
deviation 1 / sqrt(columns): activations then keep their size through any number of layers, and
routers see directions at random, which spreads tokens evenly over the experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xverse_kernels.packing import CHUNK_COLUMNS, ROWS, ExpertLayout, WeightFormat
from xverse_kernels.quantise import GROUP
from xverse_runtime.config import ModelConfig
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.journal import Journal
from xverse_runtime.store.layout import EXPERTS, StoreFile, StoreLayout
from xverse_runtime.store.manifest import MANIFEST_FILE, FileRecord, Manifest, StorePrecision
from xverse_runtime.store.place import (
    check_space,
    partial_of,
    publish,
    refuse_existing,
    refuse_foreign,
    sole_writer,
    writing,
)
from xverse_runtime.store.shard import ShardWriter, TensorSpec, shard_bytes, write_small
from xverse_runtime.types import LoadProgress, ProgressCallback

A4_2B: dict[str, Any] = {
    "architectures": ["XverseForCausalLM"],
    "model_type": "xverse",
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 1728,
    "num_attention_heads": 32,
    "num_hidden_layers": 28,
    "num_experts": 64,
    "moe_top_k": 6,
    "num_shared_experts": 2,
    "vocab_size": 100534,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "torch_dtype": "bfloat16",
}
SHAPES = {"a4.2b": A4_2B}
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
# Root mean square of the integers: uniform from -8 to 7; from -127 to 127, -127 twice as often.
DEVIATION = {4: 4.637, 8: 73.9}
POOL_BYTES = 2**24


@dataclass(frozen=True)
class SyntheticSource:
    """Random bits: a pool, from which each matrix takes another stretch, xor another word.

    Drawing 14 GB of fresh random numbers would take longer than everything else.
    """

    pool: Tensor  # int64, the same words twice: a stretch may begin anywhere in the first half
    generator: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> SyntheticSource:
        generator = torch.Generator().manual_seed(seed)
        pool = torch.randint(-(2**62), 2**62, (POOL_BYTES // 8,), generator=generator)
        return cls((pool ^ (pool.roll(1) << 1)).repeat(2), generator)

    def bits(self, count: int) -> Tensor:
        """uint8 [count], ``count`` a multiple of 8."""
        parts = []
        while count > 0:
            words = min(count, POOL_BYTES) // 8
            start = int(torch.randint(0, POOL_BYTES // 8, (1,), generator=self.generator))
            mask = torch.randint(-(2**62), 2**62, (1,), generator=self.generator)
            parts.append(self.pool[start : start + words] ^ mask)
            count -= 8 * words
        return torch.cat(parts).view(torch.uint8)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def write_synthetic_store(
    shape: dict[str, Any],
    output: Path,
    precision: StorePrecision,
    tokenizer_from: Path,
    *,
    seed: int = 0,
    progress: ProgressCallback = lambda progress: None,
) -> Manifest:
    """Write a store of random weights.

    Args:
        shape: a ``config.json``, for example `A4_2B`.
        output: must not exist.
        precision: formats of the parts.
        tokenizer_from: directory whose tokenizer the store gets; its ids are a subset.
        seed: the same seed gives the same bytes.
        progress: told the bytes written.

    Raises:
        UsageError: ``store.target_exists``, ``store.width``, ``store.busy`` or
            ``store.not_writable``.
        ResourceError: ``store.disk_full``, before the start or in the middle.
    """
    layout = StoreLayout(ModelConfig.from_dict(shape), precision)
    layout.check()
    tokenizer = ModelDirectory.open(tokenizer_from)
    small = {name: tokenizer.read_bytes(name) for name in TOKENIZER_FILES}
    small["config.json"] = json.dumps(shape, indent=2).encode()
    files = list(layout.files())
    total = sum(shard_bytes(file.specs) for file in files)
    partial = partial_of(output)
    with writing(partial, total), sole_writer(output):
        refuse_existing(output)
        refuse_foreign(partial, tokenizer.path)
        partial.mkdir(exist_ok=True)
        # nothing of a run that was interrupted is of use: its random numbers would be other ones
        journal = Journal.begin(partial)
        check_space(partial, total)
        records = _write_files(partial, files, layout, SyntheticSource.seeded(seed), progress)
        for name, data in small.items():
            records[name] = write_small(partial / name, data)
        manifest = Manifest(precision, {"name": "synthetic"}, records)
        write_small(partial / MANIFEST_FILE, manifest.to_json().encode())
        journal.remove()
        publish(partial, output)
    progress(LoadProgress(total, total))
    return manifest


def _write_files(
    partial: Path,
    files: list[StoreFile],
    layout: StoreLayout,
    source: SyntheticSource,
    progress: ProgressCallback,
) -> dict[str, FileRecord]:
    total, done = sum(shard_bytes(file.specs) for file in files), 0
    records: dict[str, FileRecord] = {}
    for file in files:
        with ShardWriter(partial / file.name, file.specs) as writer:
            for spec in file.specs:
                for piece in _pieces(spec, layout, source):
                    writer.write(piece)
                    done += piece.nbytes
                    progress(LoadProgress(done, total))
        assert writer.record is not None
        records[file.name] = writer.record
    return records


def _pieces(spec: TensorSpec, layout: StoreLayout, source: SyntheticSource) -> Iterator[Tensor]:
    config = layout.config
    if spec.name.endswith(EXPERTS):
        for _ in range(layout.blocks_per_layer):
            yield _expert_block(layout.expert_layout, source)
    elif spec.name.endswith("norm.weight"):
        yield torch.ones(spec.shape, dtype=spec.dtype)
    elif spec.dtype != torch.uint8:
        deviation = 1.0 if spec.name.endswith("embed_tokens.weight") else spec.shape[-1] ** -0.5
        for start in range(0, spec.shape[0], 4096):
            rows = min(4096, spec.shape[0] - start)
            yield (source.normal(rows, *spec.shape[1:]) * deviation).to(spec.dtype)
    else:
        head = not spec.name.startswith("model.layers.")
        form = layout.precision.head_form if head else layout.precision.attention_form
        rows = (
            config.vocab_size
            if head
            else spec.shape[0] * ROWS // form.matrix_bytes(ROWS, config.hidden_size)
        )
        yield _packed_matrix(rows, config.hidden_size, form, source)


def _expert_block(layout: ExpertLayout, source: SyntheticSource) -> Tensor:
    block = torch.zeros(layout.block_bytes, dtype=torch.uint8)
    gate_up = _packed_matrix(2 * layout.width, layout.hidden, layout.form, source)
    down = _packed_matrix(layout.hidden, layout.width, layout.form, source)
    block[: gate_up.numel()] = gate_up
    block[gate_up.numel() : gate_up.numel() + down.numel()] = down
    return block


def _packed_matrix(rows: int, columns: int, form: WeightFormat, source: SyntheticSource) -> Tensor:
    """Packed bytes of a random matrix, made in place: random integers, constant-size scales."""
    size = form.matrix_bytes(rows, columns)
    if form.dtype is not None:
        values = source.normal(size // 2) * columns**-0.5
        rounded: Tensor = values.to(form.dtype)
        return rounded.view(torch.uint8)
    data = source.bits(size)
    scale = columns**-0.5 / DEVIATION[form.bits]
    blocks = data.view(-(-rows // ROWS), -1)
    first = 0
    while first < columns:
        width = min(CHUNK_COLUMNS, columns - first)
        # all full chunks at once, then the half one
        chunks = (columns - first) // width if width == CHUNK_COLUMNS else 1
        integers, scales = ROWS * width * form.bits // 8, ROWS * width // GROUP * 2
        start = first * ROWS * form.bits // 8 + first // GROUP * ROWS * 2
        span = blocks[:, start : start + chunks * (integers + scales)]
        if form.bits == 8:  # a byte is q + 128, and q is never -128
            span.view(len(blocks), chunks, -1)[:, :, :integers].clamp_(min=1)
        view = span.view(len(blocks), chunks, -1)[:, :, integers:]
        signs = (view[:, :, 1::2] & 1).to(torch.float16) * 2 - 1
        view.copy_((signs * scale).half().view(torch.uint8).view(view.shape))
        first += chunks * width
    return data
