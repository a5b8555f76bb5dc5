"""Every kernel at the true shape: time, bytes and the share of the measured bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.parity import check_experts
from bench.gpu.random_weights import random_experts, random_packed
from bench.gpu.timing import matmul_rate, microseconds, read_bandwidth
from bench.table import Report
from xverse_kernels.kv_rows import Rows, row_bytes, to_int8
from xverse_kernels.packing import FORMATS, ExpertBlocks, ExpertLayout, WeightFormat
from xverse_kernels.triton import attention, experts, linear, parts, sampling
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.launch import Workspace
from xverse_kernels.triton.tiles import GemmTile
from xverse_kernels.types import Norm, Parts, Projection, RoutedTokens

HIDDEN, WIDTH, EXPERTS, SHARED, TOP_K, VOCAB = 2560, 1728, 64, 2, 6, 100534
HEADS, DIM = 32, 80
DTYPE = torch.bfloat16
FEW = (1, 2, 4, 8)
MANY = (16, 64, 512, 4096)
PREFILL_TILES = (
    GemmTile(128, 64, 0, 8, 3),
    GemmTile(64, 64, 0, 4, 3),
    GemmTile(128, 128, 0, 8, 2),
    GemmTile(128, 64, 0, 4, 3),
)
# positions a block, warps, parts of the past
DECODE_TILES = ((64, 4, 8), (64, 4, 16), (32, 2, 16), (32, 2, 32), (32, 2, 64), (64, 4, 32))
Caches = list[tuple[Rows, Rows]]  # of several layers: keys and values
L2_BYTES = 200 * 2**20  # rotate over more than any L2 cache holds


class _Bench:
    def __init__(self, report: Report) -> None:
        self._report = report
        self.bandwidth = read_bandwidth()
        self.rate = matmul_rate()
        device = torch.device("cuda")
        self.workspace = Workspace(device)
        self.backend = TritonBackend(device)
        report.say(
            f"Measured: {self.bandwidth / 1e9:.0f} GB/s read,"
            f" {self.rate / 1e12:.0f} TFLOP/s in bf16 (8192 x 8192 x 8192)."
        )
        columns = ["kernel", "shape", "µs", "GB/s", "of bandwidth", "TFLOP/s", "of matmul"]
        report.table("Kernels", columns)

    def row(
        self,
        kernel: str,
        shape: str,
        calls: Sequence[Callable[[], object]],
        count: float,
        flops: float = 0,
    ) -> None:
        """Time calls that each move ``count`` bytes."""
        us = microseconds(calls)
        rate, speed = count / us * 1e6, flops / us * 1e6
        self._report.row(
            kernel,
            shape,
            f"{us:.2f}",
            f"{rate / 1e9:.0f}",
            f"{rate / self.bandwidth:.1%}",
            f"{speed / 1e12:.1f}" if flops else "",
            f"{speed / self.rate:.1%}" if flops else "",
        )


def measure_kernels(report: Report, precisions: Sequence[str]) -> None:
    """Check and time all kernels; nothing is timed that was not found right."""
    torch.manual_seed(0)
    bench = _Bench(report)
    _small_kernels(bench)
    _attention(bench)
    for precision in precisions:
        _linear(bench, FORMATS[precision])
        _experts(bench, FORMATS[precision])


def random_routing(tokens: int, among: int = EXPERTS) -> RoutedTokens:
    """Tokens that chose experts evenly, all of them ``among`` as many."""
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
    some = torch.randperm(EXPERTS, device="cuda")[:among]
    ids = some[torch.rand(tokens, among, device="cuda").topk(TOP_K).indices].int()
    shared = torch.arange(EXPERTS, EXPERTS + SHARED, device="cuda", dtype=torch.int32)
    ids = torch.cat((ids, shared.expand(tokens, SHARED)), dim=1).contiguous()
    weights = torch.rand(tokens, TOP_K + SHARED, device="cuda").to(DTYPE)
    return RoutedTokens(x, weights, ids, x.new_empty(0))


def _linear(bench: _Bench, form: WeightFormat) -> None:
    norm = torch.ones(HIDDEN, device="cuda", dtype=DTYPE)
    for name, rows in (("qkv", 3 * HIDDEN), ("o", HIDDEN), ("head", VOCAB)):
        size = form.matrix_bytes(rows, HIDDEN)
        copies = max(2, -(-L2_BYTES // size))
        matrices = [random_packed(rows, HIDDEN, form, "cuda") for _ in range(copies)]
        x = torch.randn(1, HIDDEN, device="cuda", dtype=DTYPE)
        calls = [
            lambda m=m, x=x: linear.gemv(x, m, bench.workspace, norm=norm, eps=1e-6)
            for m in matrices
        ]
        bench.row(f"linear {name} {form.name}", "1 token", calls, size)
        x = torch.randn(512, HIDDEN, device="cuda", dtype=DTYPE)
        if name != "head":
            many = [
                lambda m=m, x=x: bench.backend.linear(x, [Projection(m)], norm=Norm(norm, 1e-6))
                for m in matrices[:4]
            ]
            flops = 2 * 512 * rows * HIDDEN
            bench.row(f"linear {name} {form.name}, torch", "512 tokens", many, size, flops)


def _experts(bench: _Bench, form: WeightFormat) -> None:
    layout = ExpertLayout(HIDDEN, WIDTH, form)
    layers = [random_experts(EXPERTS + SHARED, layout, DTYPE, "cuda") for _ in range(2)]
    check_experts(layers[0], random_routing(3), bench.workspace)
    for tokens in (*FEW, *MANY):
        routings = [random_routing(tokens) for _ in range(4 if tokens <= 64 else 2)]
        residual = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
        touched = sum(len(set(one.expert_ids.flatten().tolist())) for one in routings)
        count = touched / len(routings) * layout.block_bytes
        flops = tokens * (TOP_K + SHARED) * 6 * HIDDEN * WIDTH
        pairs = list(islice(zip(cycle(layers), routings, strict=False), len(routings)))
        shape = f"{tokens} token{'s' if tokens > 1 else ''}"

        def run(blocks: ExpertBlocks, routed: RoutedTokens, x: Tensor = residual) -> Tensor:
            return bench.backend.experts(routed, blocks, x)

        calls = [lambda b=b, r=r, run=run: run(b, r) for b, r in pairs]
        bench.row(f"experts {form.name}", shape, calls, count, flops if tokens > 1 else 0)
    routed = random_routing(1)
    h = torch.randn(TOP_K + SHARED, WIDTH, device="cuda", dtype=DTYPE)
    residual = torch.randn(1, HIDDEN, device="cuda", dtype=DTYPE)
    single = [random_routing(1) for _ in range(8)]
    slots = TOP_K + SHARED
    calls = [lambda r=r: experts.gate_up_each(r, layers[0]) for r in single]
    bench.row(f"gate and up {form.name}", "1 token", calls, slots * layout.gate_up_bytes)
    calls = [
        lambda r=r: experts.down_each(h, r, layers[0], residual, bench.workspace) for r in single
    ]
    bench.row(f"down {form.name}", "1 token", calls, slots * layout.down_bytes)
    out = torch.empty(1, slots, HIDDEN, device="cuda")
    calls = [lambda r=r: parts.down_parts(h, r, layers[0], out) for r in single]
    bench.row(f"down, slots apart, {form.name}", "1 token", calls, slots * layout.down_bytes)
    here = [Parts(out, layers[0].table)] * 2
    calls = [lambda r=r: parts.add_parts(residual, r.expert_ids, here, out) for r in single]
    bench.row("adding slots up", "1 token", calls, out.nbytes)
    told = [torch.empty(one.shape, dtype=torch.float32).pin_memory() for one in routed]
    calls = [
        lambda r=r: parts.copy_small(list(zip(r, told, strict=True)), residual.device)
        for r in single
    ]
    bench.row("telling the host", "1 token", calls, sum(one.nbytes for one in told))
    if form.dtype is not None:
        _torch_experts(bench, layers[0], routed, residual)
        _torch_grouped(bench)


def _torch_experts(
    bench: _Bench, blocks: ExpertBlocks, routed: RoutedTokens, residual: Tensor
) -> None:
    """The same token by a loop of torch matrix products over its experts."""
    layout = blocks.layout
    raw = blocks.blocks.view(DTYPE)
    split = layout.gate_up_bytes // 2
    gate_up = raw[:, :split].view(-1, 2 * WIDTH, HIDDEN)
    down = raw[:, split : split + HIDDEN * WIDTH].view(-1, HIDDEN, WIDTH)
    ids = routed.expert_ids[0].tolist()

    def loop() -> Tensor:
        out = residual.clone()
        for expert, weight in zip(ids, routed.weights[0], strict=True):
            gate, up = F.linear(routed.normed, gate_up[expert]).chunk(2, dim=-1)
            out += weight * F.linear(F.silu(gate) * up, down[expert])
        return out

    bench.row("torch loop over experts", "1 token", [loop] * 4, len(ids) * layout.block_bytes)


def _torch_grouped(bench: _Bench) -> None:
    """torch's own grouped product on the same shape as gate and up, tokens sorted already."""
    grouped = getattr(torch, "_grouped_mm", None)
    if grouped is None:
        return
    count = EXPERTS + SHARED
    for tokens in (512, 4096):
        pairs = tokens * (TOP_K + SHARED)
        x = torch.randn(pairs, HIDDEN, device="cuda", dtype=DTYPE)
        w = torch.randn(count, 2 * WIDTH, HIDDEN, device="cuda", dtype=DTYPE)
        ends = (torch.arange(1, count + 1, device="cuda") * pairs // count).to(torch.int32)
        flops = 4 * pairs * HIDDEN * WIDTH
        calls = [lambda x=x, w=w, ends=ends: grouped(x, w.transpose(1, 2), offs=ends)] * 3
        size = w.numel() * 2
        bench.row("torch._grouped_mm, gate and up", f"{tokens} tokens", calls, size, flops)


def _small_kernels(bench: _Bench) -> None:
    norm = torch.ones(HIDDEN, device="cuda", dtype=DTYPE)
    routers = [torch.randn(EXPERTS, HIDDEN, device="cuda") for _ in range(8)]
    for tokens in (1, 512):
        x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
        calls = [
            lambda r=r, x=x: experts.route(x, norm, 1e-6, r, TOP_K, SHARED, bench.workspace)
            for r in routers
        ]
        bench.row("router", f"{tokens} tokens", calls, EXPERTS * HIDDEN * 4)
    logits = torch.randn(1, VOCAB, device="cuda")
    for name, temperature in (("greedy", 0.0), ("top-k 30, top-p 0.85", 0.5)):
        state = sampling.SamplerState.empty(1, VOCAB, torch.device("cuda"))
        state.settings.copy_(torch.tensor([[temperature, 1.1, 0.85, 0.0]]))
        state.top_k.fill_(30)
        calls = [lambda state=state: sampling.sample(logits, state)] * 8
        bench.row(f"sampling, {name}", "1 token", calls, 5 * VOCAB)


def _attention(bench: _Bench) -> None:
    shape = (1, HEADS, 8192 + 16, DIM)
    plain: Caches = [
        (
            torch.randn(shape, device="cuda", dtype=DTYPE),
            torch.randn(shape, device="cuda", dtype=DTYPE),
        )
        for _ in range(8)
    ]
    tiles = {
        f", {tile.m} x {tile.n}, {tile.warps} warps": partial(
            attention.prefill_attention, tile=tile
        )
        for tile in PREFILL_TILES
    }
    _decode_attention(bench, "attention", plain, DTYPE)
    _prefill_attention(
        bench, "attention", plain, DTYPE, {", torch": attention.torch_attention, **tiles}
    )
    rounded: Caches = [(to_int8(k), to_int8(v)) for k, v in plain]
    name = "attention, int8 cache"
    _decode_attention(bench, name, rounded, torch.int8)
    _prefill_attention(bench, name, rounded, torch.int8, {"": attention.prefill_attention})


def _decode_attention(bench: _Bench, name: str, caches: Caches, dtype: torch.dtype) -> None:
    cos, sin = (torch.randn(8192 + 16, DIM, device="cuda") for _ in range(2))
    qkv = torch.randn(1, 3 * HEADS * DIM, device="cuda", dtype=DTYPE)
    sequences = torch.zeros(1, device="cuda", dtype=torch.int32)
    for past in (128, 1024, 4096, 8192):
        positions = torch.tensor([past], device="cuda", dtype=torch.int32)
        size = 2 * past * HEADS * row_bytes(DIM, dtype)
        for tile in (None, *DECODE_TILES) if past > 256 else (None,):
            calls = [
                lambda k=k, v=v, p=positions, past=past, tile=tile: attention.attend_each(
                    qkv, cos, sin, k, v, p, sequences, bench.workspace, longest=past, tile=tile
                )
                for k, v in caches
            ]
            title = name if tile is None else "{}, {} x {} warps, {} parts".format(name, *tile)
            bench.row(title, f"1 token, {past} past", calls, size)


def _prefill_attention(
    bench: _Bench,
    name: str,
    caches: Caches,
    dtype: torch.dtype,
    ways: dict[str, Callable[..., Tensor]],
) -> None:
    for tokens, past in ((64, 0), (512, 0), (64, 4096), (512, 1536), (512, 7168)):
        q = torch.randn(HEADS, tokens, DIM, device="cuda", dtype=DTYPE)
        pairs = tokens * past + tokens * (tokens + 1) // 2
        size = 2 * (past + tokens) * HEADS * row_bytes(DIM, dtype)
        for title, way in ways.items():
            calls = [
                lambda k=k, v=v, way=way, q=q, past=past: way(q, k, v, 0, past) for k, v in caches
            ]
            bench.row(
                name + title, f"{tokens} tokens, {past} past", calls, size,
                4 * pairs * HEADS * DIM,
            )  # fmt: skip
