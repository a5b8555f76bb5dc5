"""Every kernel at the true shape: time, bytes and the share of the measured bandwidth.

Buffers take turns, so that no call finds them in the second-level cache. The exceptions say so:
they read what the kernel before has just written, which is there in use as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.inputs import FULL, Shape, random_routing
from bench.gpu.kernel_attention import measure_attention
from bench.gpu.kernel_rows import KernelRows
from bench.gpu.parity import (
    Dense,
    dense_experts,
    down_in_fp64,
    experts_in_fp64,
    experts_near,
    gate_up_in_fp64,
    linear_in_fp64,
    near,
    routed_rightly,
)
from bench.gpu.random_weights import random_experts, random_packed
from bench.table import Report
from xverse_kernels.packing import FORMATS, ROWS, ExpertBlocks, ExpertLayout, WeightFormat
from xverse_kernels.triton import experts, linear, parts, sampling
from xverse_kernels.types import Norm, Parts, Projection, RoutedTokens
from xverse_runtime.sampling import token_probabilities
from xverse_runtime.types import SamplingParams

FEW = (1, 2, 4, 8)
MANY = (16, 64, 512, 4096)
SPAN = 512  # tokens of a prompt
GROUPED = (512, 4096)


def measure_kernels(report: Report, precisions: Sequence[str], shape: Shape = FULL) -> None:
    """Check and time all kernels: of every row the first call is compared with fp64 before.

    Raises:
        ValueError: a kernel is wrong; its row and those behind it were not timed.
    """
    torch.manual_seed(0)
    bench = KernelRows(report, shape)
    _router(bench)
    _sampler(bench)
    measure_attention(bench)
    for precision in precisions:
        _linear(bench, FORMATS[precision])
        _experts(bench, FORMATS[precision])


def _linear(bench: KernelRows, form: WeightFormat) -> None:
    shape = bench.shape
    hidden = shape.hidden
    norm = Norm(torch.ones(hidden, device=shape.device, dtype=shape.dtype), 1e-6)
    for name, rows in (("qkv", 3 * hidden), ("o", hidden), ("head", shape.vocab)):
        size = form.matrix_bytes(rows, hidden)
        matrices = [
            random_packed(rows, hidden, form, shape.device) for _ in range(shape.copies(size))
        ]
        x = shape.randn(1, hidden)
        calls = [
            lambda m=m, x=x: linear.gemv(x, m, bench.workspace, norm=norm.weight, eps=norm.eps)
            for m in matrices
        ]
        check = near(linear_in_fp64(x, matrices[0], norm))
        bench.row(f"linear {name} {form.name}", "1 token", calls, check, size)
        if name == "head":
            continue
        x = shape.randn(SPAN, hidden)
        calls = [
            lambda m=m, x=x: bench.backend.linear(x, [Projection(m)], norm=norm)
            for m in matrices[:4]
        ]
        check = near(linear_in_fp64(x, matrices[0], norm))
        flops = 2 * SPAN * rows * hidden
        bench.row(f"linear {name} {form.name}, torch", f"{SPAN} tokens", calls, check, size, flops)


def _experts(bench: KernelRows, form: WeightFormat) -> None:
    shape = bench.shape
    layout = ExpertLayout(shape.hidden, shape.width, form)
    layers = [random_experts(shape.blocks, layout, shape.dtype, shape.device) for _ in range(2)]
    dense = dense_experts(layers[0])
    for tokens in (*FEW, *MANY):
        routings = [random_routing(tokens, shape=shape) for _ in range(4 if tokens <= 64 else 2)]
        residual = shape.randn(tokens, shape.hidden)
        touched = sum(len(set(one.expert_ids.flatten().tolist())) for one in routings)
        count = touched / len(routings) * layout.block_bytes
        flops = tokens * shape.slots * 6 * shape.hidden * shape.width
        pairs = list(islice(zip(cycle(layers), routings, strict=False), len(routings)))

        def run(blocks: ExpertBlocks, routed: RoutedTokens, x: Tensor = residual) -> Tensor:
            return bench.backend.experts(routed, blocks, x)

        calls = [lambda b=b, r=r, run=run: run(b, r) for b, r in pairs]
        check = experts_near(layers[0], routings[0], residual, dense)
        title = f"{tokens} token{'s' if tokens > 1 else ''}"
        bench.row(f"experts {form.name}", title, calls, check, count, flops if tokens > 1 else 0)
    _one_token(bench, form, layers, dense)
    if form.dtype is not None:
        _torch_experts(bench, layers[0], dense)
        _torch_grouped(bench)


def _one_token(
    bench: KernelRows, form: WeightFormat, layers: list[ExpertBlocks], dense: Dense
) -> None:
    """What a token's experts consist of, kernel by kernel."""
    shape, layout = bench.shape, layers[0].layout
    routings = [random_routing(1, shape=shape) for _ in range(8)]
    pairs = list(zip(cycle(layers), routings, strict=False))
    routed, slots = routings[0], shape.slots
    calls: list[Callable[[], Any]]

    calls = [lambda b=b, r=r: experts.gate_up_each(r, b) for b, r in pairs]
    check = near(gate_up_in_fp64(dense, routed).flatten(0, 1))
    bench.row(f"gate and up {form.name}", "1 token", calls, check, slots * layout.gate_up_bytes)

    h, residual = shape.randn(slots, shape.width), shape.randn(1, shape.hidden)
    shares = down_in_fp64(dense, routed, h.unsqueeze(0))
    calls = [
        lambda b=b, r=r: experts.down_each(h, r, b, residual, bench.workspace) for b, r in pairs
    ]
    check = near(residual.double().cpu() + shares.sum(1))
    bench.row(f"down {form.name}", "1 token", calls, check, slots * layout.down_bytes)

    out = torch.zeros(1, slots, shape.hidden, device=shape.device)
    calls = [lambda b=b, r=r: parts.down_parts(h, r, b, out) for b, r in pairs]
    bench.row(
        f"down, slots apart, {form.name}", "1 token", calls,
        lambda _: near(shares)(out), slots * layout.down_bytes,
    )  # fmt: skip

    here = [Parts(out, layers[0].table)] * 2
    calls = [lambda r=r: parts.add_parts(residual, r.expert_ids, here, out) for r in routings]
    check = near(residual.double() + out.double().sum(1))
    bench.row("adding slots up, in the second-level cache", "1 token", calls, check, out.nbytes)

    told = [torch.zeros(one.shape, dtype=torch.float32) for one in routed]
    if shape.device == "cuda":
        told = [one.pin_memory() for one in told]
    calls = [
        lambda r=r: parts.copy_small(list(zip(r, told, strict=True)), residual.device)
        for r in routings
    ]

    def told_rightly(_: None) -> None:
        if shape.device == "cuda":
            torch.cuda.synchronize()
        if not all(torch.equal(a.float().cpu(), b) for a, b in zip(routed, told, strict=True)):
            raise ValueError("the host was told something else")

    size = sum(one.nbytes for one in told)
    bench.row("telling the host, from the second-level cache", "1 token", calls, told_rightly, size)


def _torch_experts(bench: KernelRows, blocks: ExpertBlocks, dense: Dense) -> None:
    """A token by a loop of torch matrix products over its experts."""
    shape, layout = bench.shape, blocks.layout
    routed, residual = random_routing(1, shape=shape), shape.randn(1, shape.hidden)
    raw = blocks.blocks.view(layout.form.dtype)
    split = layout.gate_up_bytes // 2
    gate_up = raw[:, :split].view(-1, 2 * shape.width, shape.hidden)
    down = raw[:, split : split + shape.hidden * shape.width]
    down = down.view(-1, shape.hidden, shape.width)
    ids = routed.expert_ids[0].tolist()

    def loop() -> Tensor:
        out = residual.clone()
        for expert, weight in zip(ids, routed.weights[0], strict=True):
            both = F.linear(routed.normed, gate_up[expert].to(routed.normed.dtype))
            gate, up = both.view(-1, 2, ROWS).unbind(1)  # 16 rows of each in turn
            h = (F.silu(gate) * up).view(1, -1)
            out += weight * F.linear(h, down[expert].to(h.dtype))
        return out

    check = near(residual.double().cpu() + experts_in_fp64(blocks, routed, dense))
    size = len(ids) * layout.block_bytes
    bench.row("torch loop over experts", "1 token", [loop] * 4, check, size)


def _torch_grouped(bench: KernelRows) -> None:
    """torch's own grouped product on the same shape as gate and up, tokens sorted already."""
    grouped, shape = getattr(torch, "_grouped_mm", None), bench.shape
    if grouped is None or shape.device != "cuda":
        return
    for tokens in GROUPED:
        pairs = tokens * shape.slots
        x = shape.randn(pairs, shape.hidden)
        w = shape.randn(shape.blocks, 2 * shape.width, shape.hidden)
        number = torch.arange(1, shape.blocks + 1, device=shape.device)
        ends = (number * pairs // shape.blocks).to(torch.int32)
        ends_of = ((x[0], w[0]), (x[-1], w[-1]))  # the first expert's first row, the last's last
        expected = torch.stack([matrix.double() @ row.double() for row, matrix in ends_of])
        calls = [lambda x=x, w=w, ends=ends: grouped(x, w.transpose(1, 2), offs=ends)] * 3
        bench.row(
            "torch._grouped_mm, gate and up", f"{tokens} tokens", calls,
            lambda found, expected=expected: near(expected)(found[[0, -1]]),
            w.nbytes, 4 * pairs * shape.hidden * shape.width,
        )  # fmt: skip


def _router(bench: KernelRows) -> None:
    shape = bench.shape
    norm = Norm(torch.ones(shape.hidden, device=shape.device, dtype=shape.dtype), 1e-6)
    size = shape.experts * shape.hidden * 4
    # logits of deviation 1, as there are many ways to order probabilities that are all 0
    routers = [
        shape.randn(shape.experts, shape.hidden, dtype=torch.float32) * shape.hidden**-0.5
        for _ in range(shape.copies(size))
    ]
    for tokens in (1, SPAN):
        x = shape.randn(tokens, shape.hidden)
        calls = [
            lambda r=r, x=x: experts.route(
                x, norm.weight, norm.eps, r, shape.top_k, shape.shared, bench.workspace
            )
            for r in routers
        ]
        check = routed_rightly(x, norm, routers[0], shape.top_k, shape.shared)
        bench.row("router", f"{tokens} token{'s' if tokens > 1 else ''}", calls, check, size)


def _sampler(bench: KernelRows) -> None:
    shape = bench.shape
    size = 5 * shape.vocab  # fp32 logits, and a byte for what was said before
    count = shape.copies(size)
    padded = -(-shape.vocab // 4) * 4  # as kernels take rows: every one on a multiple of 16 bytes
    logits = shape.randn(count, padded, dtype=torch.float32)[:, : shape.vocab]
    params = SamplingParams(
        temperature=0.5, top_k=30, top_p=0.85, min_p=0.0, repetition_penalty=1.1
    )
    first = logits[0].cpu()
    possible = token_probabilities(first, torch.empty(0, dtype=torch.int64), params) > 0
    likeliest = torch.arange(shape.vocab) == first.argmax()
    for name, temperature, allowed in (
        ("greedy", 0.0, likeliest),
        ("top-k 30, top-p 0.85", 0.5, possible),
    ):
        state = sampling.SamplerState.empty(count, shape.vocab, torch.device(shape.device))
        numbers = (temperature, params.repetition_penalty, params.top_p, params.min_p)
        state.settings.copy_(torch.tensor([numbers]))
        state.top_k.fill_(params.top_k)

        def drawn(tokens: Tensor, allowed: Tensor = allowed) -> None:
            if not allowed[int(tokens[0])]:
                raise ValueError(f"token {int(tokens[0])} was drawn")

        calls = [
            lambda row=row, state=state: sampling.sample(logits[row : row + 1], state, row)
            for row in range(count)
        ]
        bench.row(f"sampling, {name}", "1 token", calls, drawn, size)
