"""A store's weights for the decoder: views of mapped files."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from torch import Tensor

from xverse_kernels.packing import ExpertBlocks, PackedMatrix, WeightFormat
from xverse_kernels.types import Projection
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import IntegrityError
from xverse_runtime.mapped_files import MappedFiles, map_safetensors
from xverse_runtime.model_dir import ModelDirectory
from xverse_runtime.store.layout import EXPERTS, StoreFile, StoreLayout
from xverse_runtime.store.manifest import Manifest
from xverse_runtime.tensors import EMBEDDING, FINAL_NORM, HEAD, expected_tensors, layer_prefix
from xverse_runtime.weights import (
    AttentionWeights,
    DenseWeights,
    LayerWeights,
    ModelWeights,
    MoeWeights,
)


def open_store(
    directory: ModelDirectory,
    config: ModelConfig,
    manifest: Manifest,
    dtype: torch.dtype,
    *,
    as_stored: bool = False,
    files: MappedFiles | None = None,
) -> ModelWeights:
    """Map a store's files and check them against the model's configuration.

    Args:
        directory: the store.
        config: of the store's own ``config.json``.
        manifest: of the store.
        dtype: of the activations; norms are brought to it, experts come out of their blocks in it.
        as_stored: leave float matrices in their own dtype, mapped, rather than bring them to it.
        files: told which tensors are in which file.

    Raises:
        IntegrityError: ``checkpoint.corrupt``, ``store.tensors`` or ``store.manifest_invalid``.
    """
    layout = StoreLayout(config, manifest.precision)
    layout.check_listed(manifest, directory)
    tensors: dict[str, Tensor] = {}
    for file in layout.files():
        tensors |= _read_file(directory, file, files)
    return _Assembler(config, layout, tensors, dtype, as_stored).model()


def _read_file(
    directory: ModelDirectory, file: StoreFile, files: MappedFiles | None
) -> dict[str, Tensor]:
    try:
        tensors = map_safetensors(directory.file(file.name), file.name, files)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise IntegrityError("checkpoint.corrupt", path=file.name, detail=str(error)) from None
    wanted = {spec.name: (spec.dtype, spec.shape) for spec in file.specs}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != wanted:
        different = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        raise IntegrityError("store.tensors", name=file.name, tensors=different)
    return tensors


class _Assembler:
    def __init__(
        self,
        config: ModelConfig,
        layout: StoreLayout,
        tensors: dict[str, Tensor],
        dtype: torch.dtype,
        as_stored: bool,
    ) -> None:
        self._config = config
        self._layout = layout
        self._tensors = tensors
        self._dtype = dtype
        self._matrix_dtype = None if as_stored else dtype
        self._shapes = expected_tensors(config)

    def model(self) -> ModelWeights:
        embedding = self._tensors[EMBEDDING]
        if self._config.tie_word_embeddings:
            # one tensor, also where it has to be converted: devices then hold it once
            embedding = embedding.to(self._matrix_dtype)
            head: Tensor | PackedMatrix = embedding
        else:
            head = self._matrix(HEAD, self._layout.precision.head_form)
        return ModelWeights(
            embedding=embedding,
            layers=tuple(self._layer(number) for number in range(self._config.num_layers)),
            norm=self._norm(FINAL_NORM),
            head=head,
        )

    def _layer(self, number: int) -> LayerWeights:
        prefix = layer_prefix(number)
        q, k, v, o = (self._projection(f"{prefix}self_attn.{one}_proj") for one in "qkvo")
        blocks = ExpertBlocks(
            self._tensors[prefix + EXPERTS], self._layout.expert_layout, self._dtype
        )
        router = self._tensors.get(f"{prefix}mlp.router.weight")
        return LayerWeights(
            input_norm=self._norm(f"{prefix}input_layernorm.weight"),
            attention=AttentionWeights((q, k, v), o),
            post_attention_norm=self._norm(f"{prefix}post_attention_layernorm.weight"),
            mlp=DenseWeights(blocks) if router is None else MoeWeights(router, blocks),
        )

    def _norm(self, name: str) -> Tensor:
        return self._tensors[name].to(self._dtype)

    def _projection(self, name: str) -> Projection:
        bias = self._tensors.get(f"{name}.bias")
        return Projection(
            self._matrix(f"{name}.weight", self._layout.precision.attention_form),
            None if bias is None else bias.to(self._dtype),
        )

    def _matrix(self, name: str, form: WeightFormat) -> Tensor | PackedMatrix:
        if form.dtype is not None:
            return self._tensors[name].to(self._matrix_dtype)
        rows, columns = self._shapes[name]
        return PackedMatrix(self._tensors[name], rows, columns, form)
