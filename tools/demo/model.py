"""The XVERSE-MoE decoder for training: plain torch, whole sequences, no cache.

The maths is that of the published architecture, so that the exported weights run in
`xverse_runtime` unchanged. Parameter names differ only where experts are stacked for speed;
`export.py` writes the published names.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo model; the defaults are those of the embedded checkpoint."""

    vocab_size: int = 3072
    hidden_size: int = 160
    num_heads: int = 2
    num_layers: int = 4
    expert_width: int = 64
    num_experts: int = 16
    top_k: int = 4
    num_shared_experts: int = 2
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-6
    max_positions: int = 1024

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] fp32 → the same."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(config: DemoConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, head_dim] fp32; both halves hold the same angles."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length).float(), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in its half-rotation form. x: [batch, heads, length, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, length, hidden] fp32 → the same; causal."""
        batch, length, size = x.shape
        heads = (batch, length, self.num_heads, size // self.num_heads)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, size))
        return merged


def _permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """x[order], with the inverse reordering as gradient: no scatter, so deterministic."""
    reordered: Tensor = _Permute.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return reordered


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0][inverse], None, None


class MoE(nn.Module):
    """Routed SwiGLU experts plus one shared MLP that is always on."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        size, width = config.hidden_size, config.expert_width
        shared = config.num_shared_experts * width
        self.top_k = config.top_k
        self.num_experts = config.num_experts
        self.router = nn.Linear(size, config.num_experts, bias=False)
        # [experts, 2·width, hidden]: gate rows, then up rows.
        self.gate_up = nn.Parameter(torch.empty(config.num_experts, 2 * width, size))
        self.down = nn.Parameter(torch.empty(config.num_experts, size, width))
        self.shared_gate_up = nn.Parameter(torch.empty(2 * shared, size))
        self.shared_down = nn.Parameter(torch.empty(size, shared))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [tokens, hidden] fp32 → output [tokens, hidden], balance loss [], load [experts]."""
        probabilities = F.softmax(self.router(x), dim=-1)  # [tokens, experts]
        weights, chosen = probabilities.topk(self.top_k, dim=-1)  # [tokens, k]
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)

        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        inverse = order.argsort()
        counts = flat.bincount(minlength=self.num_experts)
        rows = x.unsqueeze(1).expand(-1, self.top_k, -1).reshape(-1, x.shape[1])
        grouped = _permute(rows, order, inverse)  # [tokens·k, hidden], by expert
        # unbind, not indexing: the gradient of an index would zero the whole stack each time.
        parts = [
            swiglu(part, gate_up, down)
            for part, gate_up, down in zip(
                torch.split(grouped, counts.tolist()),
                self.gate_up.unbind(),
                self.down.unbind(),
                strict=True,
            )
        ]
        routed = _permute(torch.cat(parts), inverse, order)
        routed = routed.view(-1, self.top_k, x.shape[1])  # [tokens, k, hidden]
        output = (routed * weights.unsqueeze(-1)).sum(1)
        output = output + swiglu(x, self.shared_gate_up, self.shared_down)

        load = counts / flat.numel()
        balance = self.num_experts * (load * probabilities.mean(0)).sum()
        return output, balance, load


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x: [tokens, hidden]; gate_up: [2·width, hidden]; down: [hidden, width]."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


class Block(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, dropout: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + F.dropout(attended, dropout, self.training)
        normed = self.post_attention_layernorm(x)
        output, balance, load = self.mlp(normed.flatten(0, 1))
        return x + F.dropout(output.view_as(x), dropout, self.training), balance, load


class DemoModel(nn.Module):
    """Token ids → logits. Initialised from torch's global generator."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DemoConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                # Outputs into the residual stream start smaller, so that depth is harmless.
                into_residual = name.endswith(("o_proj.weight", "down"))
                scale = (2 * config.num_layers) ** -0.5 if into_residual else 1.0
                width = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
                nn.init.normal_(parameter, std=width * scale * (0.5 if "lm_head" in name else 1))
        cos, sin = rope_tables(config, config.max_positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids: [batch, length] int64 → logits [batch, length, vocab] fp32, balance loss [],
        load [layers, experts] (the share of assignments that each expert got)."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = F.dropout(self.embed_tokens(ids), self.dropout, self.training)
        balances, loads = [], []
        for layer in self.layers:
            x, balance, load = layer(x, cos, sin, self.dropout)
            balances.append(balance)
            loads.append(load)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits, torch.stack(balances).mean(), torch.stack(loads)
