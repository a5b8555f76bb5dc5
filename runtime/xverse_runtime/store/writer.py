"""The bytes of a store's files, packed from published tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from xverse_kernels.packing import ExpertLayout, WeightFormat, pack_matrix
from xverse_kernels.types import SwigluWeights
from xverse_runtime.errors import IntegrityError
from xverse_runtime.store.journal import Journal
from xverse_runtime.store.layout import EXPERTS, StoreFile, StoreLayout
from xverse_runtime.store.shard import ShardWriter, TensorSpec
from xverse_runtime.tensors import PROJECTIONS, layer_prefix
from xverse_runtime.types import LoadProgress, ProgressCallback
from xverse_runtime.weights import split_shared

SLICE_WEIGHTS = 2**22  # of a matrix that is written in pieces


class Writer:
    """Writes files of a store, and enters them in the journal."""

    def __init__(
        self,
        partial: Path,
        layout: StoreLayout,
        journal: Journal,
        threads: int,
        progress: ProgressCallback,
        total: int,
    ) -> None:
        self._partial = partial
        self._layout = layout
        self._journal = journal
        self._threads = threads
        self._progress = progress
        self._total = total

    def write(self, files: Iterable[StoreFile], tensors: Mapping[str, Tensor]) -> None:
        """Write those of ``files`` that the journal does not have yet.

        Args:
            files: of the layout.
            tensors: the published ones that these files are made from, at least.
        """
        pieces = _Pieces(self._layout, tensors)
        with ThreadPoolExecutor(self._threads) as pool:
            for file in files:
                if file.name in self._journal.records:
                    continue
                done = self._journal.done_bytes
                with ShardWriter(self._partial / file.name, file.specs) as writer:
                    for spec in file.specs:
                        for piece in pieces.of(spec, file.layer, pool):
                            writer.write(piece)
                            done += piece.nbytes
                            self._progress(LoadProgress(done, self._total))
                assert writer.record is not None
                self._journal.add(file.name, writer.record)
        self._progress(LoadProgress(self._journal.done_bytes, self._total))


class _Pieces:
    """What a store's tensors are made of: its bytes, from published tensors."""

    def __init__(self, layout: StoreLayout, tensors: Mapping[str, Tensor]) -> None:
        self._layout = layout
        self._tensors = tensors

    def of(self, spec: TensorSpec, layer: int | None, pool: ThreadPoolExecutor) -> Iterator[Tensor]:
        """The bytes of one tensor of the store, in pieces."""
        if layer is not None and spec.name == layer_prefix(layer) + EXPERTS:
            yield from _pack_in_order(self._experts(layer), self._layout.expert_layout, pool)
            return
        tensor = self._tensors[spec.name]
        form = self._form(spec, layer)
        # Row blocks are independent: slices of rows keep the memory small.
        rows = max(16, SLICE_WEIGHTS // tensor[0].numel() // 16 * 16)
        for start in range(0, tensor.shape[0], rows):
            part = tensor[start : start + rows]
            if form is None:
                yield _finite(part.to(spec.dtype), spec.name).contiguous()
            else:
                yield pack_matrix(_fitting(part, form, spec.name), form)

    def _form(self, spec: TensorSpec, layer: int | None) -> WeightFormat | None:
        """How a tensor is packed; not at all where it is stored in a type of its own."""
        if spec.dtype != torch.uint8:
            return None
        precision = self._layout.precision
        return precision.head_form if layer is None else precision.attention_form

    def _experts(self, layer: int) -> Iterator[tuple[str, SwigluWeights]]:
        """Name and weights of each block of a layer: the routed experts, then the shared."""
        config, prefix = self._layout.config, f"{layer_prefix(layer)}mlp."
        if not config.is_moe:
            yield prefix, self._swiglu(prefix)
            return
        for number in range(config.num_experts):
            yield f"{prefix}experts.{number}.", self._swiglu(f"{prefix}experts.{number}.")
        if config.num_shared_experts:
            name = f"{prefix}shared_experts."
            for part in split_shared(self._swiglu(name), config.num_shared_experts):
                yield name, part

    def _swiglu(self, prefix: str) -> SwigluWeights:
        return SwigluWeights(*(self._tensors[f"{prefix}{name}.weight"] for name in PROJECTIONS))


def _pack_in_order(
    experts: Iterator[tuple[str, SwigluWeights]], layout: ExpertLayout, pool: ThreadPoolExecutor
) -> Iterator[Tensor]:
    """Blocks in the order of the experts, a few of them in the making at a time."""

    def pack(prefix: str, expert: SwigluWeights) -> Tensor:
        for name, part in zip(PROJECTIONS, expert, strict=True):
            _fitting(part, layout.form, f"{prefix}{name}.weight")
        return layout.pack(expert)

    waiting: list[Future[Tensor]] = []
    window = pool._max_workers + 1
    while True:
        fresh = islice(experts, window - len(waiting))
        waiting += [pool.submit(pack, prefix, expert) for prefix, expert in fresh]
        if not waiting:
            return
        yield waiting.pop(0).result()


def _fitting(weight: Tensor, form: WeightFormat, name: str) -> Tensor:
    """``weight``, once it is known that every value can be told in ``form``."""
    _finite(weight if form.dtype is None else weight.to(form.dtype), name)
    return weight


def _finite(weight: Tensor, name: str) -> Tensor:
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        detail = f"{int((~finite).sum())} in {str(weight.dtype).removeprefix('torch.')}"
        raise IntegrityError("checkpoint.not_finite", tensor=name, detail=detail)
    return weight
