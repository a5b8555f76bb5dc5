"""A model's weights in the form that the GPU kernels read, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xverse_kernels.packing import ROWS, ExpertBlocks, ExpertLayout, PackedMatrix, WeightFormat
from xverse_kernels.types import Projection, SwigluWeights
from xverse_runtime.upload import Uploader
from xverse_runtime.weights import (
    AttentionWeights,
    DenseWeights,
    LayerWeights,
    ModelWeights,
    MoeWeights,
)


def place_weights(
    weights: ModelWeights,
    form: WeightFormat,
    dtype: torch.dtype,
    uploader: Uploader,
    *,
    offload: bool = False,
) -> ModelWeights:
    """Copy weights to a device: matrices side by side in one, experts as blocks.

    Args:
        weights: views of mapped files, plain or packed.
        form: float format of blocks made of plain experts; packed ones keep theirs.
        dtype: of the activations.
        uploader: to the device.
        offload: leave the embedding and the experts of mixtures where they are.

    Raises:
        IntegrityError: ``checkpoint.corrupt``: a file could not be read.
    """
    placed = _Placer(uploader, form, dtype, offload).model(weights)
    uploader.finish()
    return placed


class _Placer:
    def __init__(
        self, uploader: Uploader, form: WeightFormat, dtype: torch.dtype, offload: bool
    ) -> None:
        self.uploader = uploader
        self._offload = offload
        self._form = form
        self._dtype = dtype

    def model(self, weights: ModelWeights) -> ModelWeights:
        tied = weights.head is weights.embedding
        embedding = weights.embedding
        if tied or not self._offload:
            embedding = self.uploader.to_device(embedding, self._dtype)
        return ModelWeights(
            embedding=embedding,
            layers=tuple(self._layer(layer) for layer in weights.layers),
            norm=self._tensor(weights.norm),
            head=embedding if tied else self._matrix([weights.head]),
        )

    def _layer(self, layer: LayerWeights) -> LayerWeights:
        mlp: DenseWeights | MoeWeights
        if isinstance(layer.mlp, MoeWeights):
            router = self.uploader.to_device(layer.mlp.router)
            experts = layer.mlp.experts
            mlp = MoeWeights(router, experts if self._offload else self._experts(experts))
        else:
            mlp = DenseWeights(self._experts(layer.mlp.mlp))
        return LayerWeights(
            input_norm=self._tensor(layer.input_norm),
            attention=AttentionWeights(
                (self._projection(layer.attention.qkv),), self._projection([layer.attention.o])
            ),
            post_attention_norm=self._tensor(layer.post_attention_norm),
            mlp=mlp,
        )

    def _tensor(self, tensor: Tensor) -> Tensor:
        return self.uploader.to_device(tensor, self._dtype)

    def _projection(self, parts: Sequence[Projection]) -> Projection:
        biases = [part.bias for part in parts if part.bias is not None]
        bias = self._tensor(torch.cat(biases)) if biases else None
        return Projection(self._matrix([part.weight for part in parts]), bias)

    def _matrix(self, parts: Sequence[Tensor | PackedMatrix]) -> Tensor | PackedMatrix:
        """Matrices of the same width, one below the other."""
        plain = [part for part in parts if isinstance(part, Tensor)]
        if plain:
            return self._dense_matrix(plain)
        packed = [part for part in parts if isinstance(part, PackedMatrix)]
        # row blocks are packed one by one, so the bytes of whole blocks can be joined
        assert all(part.rows % ROWS == 0 for part in packed[:-1])
        data = torch.empty(
            sum(part.data.numel() for part in packed), dtype=torch.uint8, device=self.device
        )
        start = 0
        for part in packed:
            self.uploader.copy(part.data, data[start : start + part.data.numel()])
            start += part.data.numel()
        rows = sum(part.rows for part in packed)
        return PackedMatrix(data, rows, packed[0].columns, packed[0].form)

    def _dense_matrix(self, parts: Sequence[Tensor]) -> Tensor:
        shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
        whole = torch.empty(shape, dtype=self._dtype, device=self.device)
        start = 0
        for part in parts:
            self.uploader.copy(part, whole[start : start + part.shape[0]])
            start += part.shape[0]
        return whole

    @property
    def device(self) -> torch.device:
        return self.uploader.device

    def _experts(self, experts: Sequence[SwigluWeights]) -> ExpertBlocks:
        if isinstance(experts, ExpertBlocks):
            return ExpertBlocks(
                self.uploader.to_device(experts.blocks), experts.layout, self._dtype
            )
        width, hidden = experts[0].gate.shape
        layout = ExpertLayout(hidden, width, self._form)
        assert self._form.dtype is not None
        blocks = torch.zeros(
            len(experts), layout.block_bytes, dtype=torch.uint8, device=self.device
        )
        for block, expert in zip(blocks, experts, strict=True):
            gate_up = block[: layout.gate_up_bytes].view(self._form.dtype)
            pairs = gate_up.view(width // ROWS, 2, ROWS, hidden)
            end = layout.gate_up_bytes + layout.down_bytes
            down = block[layout.gate_up_bytes : end].view(self._form.dtype).view(hidden, width)
            self.uploader.copy(expert.gate, pairs[:, 0])
            self.uploader.copy(expert.up, pairs[:, 1])
            self.uploader.copy(expert.down, down)
        return ExpertBlocks(blocks, layout, self._dtype)
