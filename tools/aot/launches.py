"""What the launchers would compile, found by running the decoder itself on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tools.aot.targets import Target
from xverse_kernels.packing import ExpertBlocks, ExpertLayout, PackedMatrix, WeightFormat
from xverse_kernels.triton import attention, backend, experts
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.launch import Launcher
from xverse_kernels.types import Projection, Rotary
from xverse_runtime.config import ModelConfig
from xverse_runtime.kv_cache import KVCache, KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.weights import AttentionWeights, LayerWeights, ModelWeights, MoeWeights

META = torch.device("meta")
CAPACITY = 32768
# Every way to divide the work by tokens and by the past: a test holds them against tiles.py.
TOKENS = (1, 8, 32, 64, 512, 4096)
LONGEST = (256, 1024, CAPACITY)
TYPE_NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One compiled version of a kernel."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]  # argument and type
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int
    pdl: bool

    @property
    def constant(self) -> dict[str, Any]:
        return dict(self.constants)

    @property
    def bits(self) -> int:
        """Of a weight; 0 for kernels without weights."""
        return int(self.constant.get("BITS", 0))

    @property
    def has_products(self) -> bool:
        """Whether it multiplies matrices."""
        return "DOT" in self.constant

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def types(self) -> dict[str, str]:
        return dict(self.signature)


class UnspecialisedError(AssertionError):
    """An integer argument that triton would specialise, so that versions differ by its value."""


@contextmanager
def recording(target: Target) -> Iterator[list[Launch]]:
    """Launches are written down, and the launchers believe to be on ``target``."""
    found: dict[Launch, None] = {}
    launches: list[Launch] = []

    def record(
        self: Any,
        grid: tuple[int, ...],
        args: tuple[Any, ...],
        constants: dict[str, Any],
        *,
        warps: int = 4,
        stages: int = 3,
        pdl: bool = False,
    ) -> None:
        kernel = self._kernel
        names = kernel.arg_names
        assert tuple(constants) == tuple(names[len(args) :])
        signature = tuple(
            (name, type_name(name, arg, kernel)) for name, arg in zip(names, args, strict=False)
        )
        values = tuple(constants.items())
        launch = Launch(kernel.__module__, kernel.__name__, signature, values, warps, stages, pdl)
        if launch not in found:
            found[launch] = None
            launches.append(launch)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Launcher, "__call__", record))
        for module in (attention, experts):
            stack.enter_context(patch.object(module, "matrix_unit", lambda _: target.unit))
        stack.enter_context(patch.object(backend, "supports_pdl", lambda _: target.pdl))
        yield launches


def type_name(name: str, arg: Any, kernel: Any) -> str:
    """As triton's signatures spell it."""
    if isinstance(arg, Tensor):
        return TYPE_NAMES[arg.dtype]
    if isinstance(arg, float):
        return "fp32"
    if name not in kernel.do_not_specialize:
        raise UnspecialisedError(f"{kernel.__name__}: {name} is missing in do_not_specialize")
    return "i32"


def record(target: Target, dtype: torch.dtype, form: WeightFormat) -> list[Launch]:
    """All that a model of the true shape launches, with activations of ``dtype`` and weights of
    ``form``, for prompts and steps of TOKENS tokens and pasts of LONGEST."""
    config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": 1})
    rotary = Rotary(*(torch.empty(CAPACITY, config.head_dim, device=META) for _ in range(2)))
    with recording(target) as launches:
        decoder = Decoder(
            config, _weights(config, dtype, form), TritonBackend(META), _Table(rotary)
        )
        for tokens in TOKENS:
            pool = KVPool(config, CAPACITY, dtype, META, tokens)
            decoder.forward([0] * tokens, KVCache(pool))
            ids = torch.zeros(tokens, dtype=torch.int64, device=META)
            where = torch.zeros(tokens, dtype=torch.int32, device=META)
            for longest in LONGEST:
                logits = decoder.step(ids, pool, where, where, longest)
            sampler = decoder.kernels.sampler(tokens, config.vocab_size)
            assert sampler is not None
            sampler(logits)
    return launches


@dataclass(frozen=True)
class _Table:
    table: Rotary


def _weights(config: ModelConfig, dtype: torch.dtype, form: WeightFormat) -> ModelWeights:
    hidden, blocks = config.hidden_size, config.num_experts + config.num_shared_experts

    def matrix(rows: int) -> Tensor | PackedMatrix:
        if not form.is_quantised:
            return torch.empty(rows, hidden, dtype=form.dtype, device=META)
        size = form.matrix_bytes(rows, hidden)
        return PackedMatrix(torch.empty(size, dtype=torch.uint8, device=META), rows, hidden, form)

    def vector() -> Tensor:
        return torch.empty(hidden, dtype=dtype, device=META)

    layout = ExpertLayout(hidden, config.intermediate_size, form)
    packed = torch.empty(blocks, layout.block_bytes, dtype=torch.uint8, device=META)
    layer = LayerWeights(
        input_norm=vector(),
        attention=AttentionWeights((Projection(matrix(3 * hidden)),), Projection(matrix(hidden))),
        post_attention_norm=vector(),
        mlp=MoeWeights(
            torch.empty(config.num_experts, hidden, device=META),
            ExpertBlocks(packed, layout, dtype),
        ),
    )
    embedding = torch.empty(config.vocab_size, hidden, dtype=dtype, device=META)
    return ModelWeights(embedding, (layer,), vector(), matrix(config.vocab_size))
