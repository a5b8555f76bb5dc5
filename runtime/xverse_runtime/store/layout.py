"""Which tensors a store has, in which file, in which form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from xverse_kernels.packing import ROWS, ExpertLayout, WeightFormat
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError, UsageError
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.manifest import Manifest, StorePrecision
from xverse_runtime.store.shard import TensorSpec
from xverse_runtime.tensors import EMBEDDING, FINAL_NORM, HEAD, expected_tensors, layer_prefix

EXPERTS = "mlp.experts"  # the packed blocks of a layer, after its prefix


@dataclass(frozen=True)
class StoreFile:
    """One safetensors file: its name, its tensors in order, and the layer it holds, if any."""

    name: str
    specs: list[TensorSpec]
    layer: int | None


@dataclass(frozen=True)
class StoreLayout:
    """The files of a store of one model at one precision."""

    config: ModelConfig
    precision: StorePrecision

    @property
    def expert_layout(self) -> ExpertLayout:
        config = self.config
        form = self.precision.expert_form
        return ExpertLayout(config.hidden_size, config.intermediate_size, form)

    @property
    def blocks_per_layer(self) -> int:
        """Routed and shared experts; a dense model's MLP is one block."""
        config = self.config
        return config.num_experts + config.num_shared_experts if config.is_moe else 1

    def check(self) -> None:
        """Raises UsageError: ``store.width`` for widths that the precision cannot hold."""
        try:
            if self.config.intermediate_size % ROWS:
                width = self.config.intermediate_size
                raise ValueError(f"expert widths must be multiples of {ROWS}, not {width}")
            for _ in self.files():
                pass
        except ValueError as error:
            raise UsageError("store.width", detail=str(error)) from None

    def check_listed(self, manifest: Manifest, directory: ModelDirectory) -> None:
        """Raises IntegrityError: ``store.manifest_invalid``: a file of the model, or its
        configuration, is not in the manifest, or its widths do not fit the precision."""
        try:
            self.check()
            missing = {"config.json", *(file.name for file in self.files())} - manifest.files.keys()
            detail = f"{', '.join(sorted(missing))} not listed"
        except UsageError as error:
            missing, detail = {"config.json"}, str(error.params["detail"])
        if missing:
            raise IntegrityError("store.manifest_invalid", path=str(directory.path), detail=detail)

    def files(self) -> Iterator[StoreFile]:
        """All files in the order they are written; for a layout that passes `check`."""
        yield StoreFile("embedding.safetensors", [self._plain(EMBEDDING, torch.bfloat16)], None)
        for layer in range(self.config.num_layers):
            yield StoreFile(f"layer-{layer:05}.safetensors", self._layer(layer), layer)
        head = [self._plain(FINAL_NORM, torch.float32)]
        if not self.config.tie_word_embeddings:
            head.append(self._matrix(HEAD, self.precision.head_form))
        yield StoreFile("head.safetensors", head, None)

    def published(self, file: StoreFile) -> list[str]:
        """Names of the published tensors that a file is made from."""
        if file.layer is None:
            return [spec.name for spec in file.specs]
        return [name for name in self._shapes if name.startswith(layer_prefix(file.layer))]

    def _layer(self, layer: int) -> list[TensorSpec]:
        prefix = layer_prefix(layer)
        blocks = (self.blocks_per_layer, self.expert_layout.block_bytes)
        specs = [TensorSpec(prefix + EXPERTS, torch.uint8, blocks)]
        for name in self._shapes:
            if not name.startswith(prefix):
                continue
            if name.startswith(f"{prefix}self_attn.") and name.endswith(".weight"):
                specs.append(self._matrix(name, self.precision.attention_form))
            elif not name.startswith(f"{prefix}mlp.") or name == f"{prefix}mlp.router.weight":
                specs.append(self._plain(name, torch.float32))
        return specs

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return expected_tensors(self.config)

    def _plain(self, name: str, dtype: torch.dtype) -> TensorSpec:
        return TensorSpec(name, dtype, self._shapes[name])

    def _matrix(self, name: str, form: WeightFormat) -> TensorSpec:
        """A matrix: a tensor of its own dtype, or the packed bytes."""
        rows, columns = self._shapes[name]
        if form.dtype is not None:
            return TensorSpec(name, form.dtype, (rows, columns))
        return TensorSpec(name, torch.uint8, (form.matrix_bytes(rows, columns),))
