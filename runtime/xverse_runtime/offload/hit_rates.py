"""How often a routed expert is found in the GPU's slots: the published curve of this family."""

from __future__ import annotations

# Hit rate of routed-expert activations with a model-wide LRU cache, by expert slots per layer
# (index 0 to 64): XVERSE-MoE-A4.2B, 22,528 samples of 512 tokens. Source: "Not All Models Suit
# Expert Offloading" (moe-lrc), plot/mchr.pdf, vector data.
LRU = (
    0.0096, 0.0439, 0.0965, 0.1586, 0.2241, 0.2666, 0.2931, 0.3175, 0.3418, 0.3648, 0.3840,
    0.4029, 0.4221, 0.4414, 0.4595, 0.4766, 0.4938, 0.5109, 0.5281, 0.5441, 0.5598, 0.5746,
    0.5889, 0.6031, 0.6174, 0.6317, 0.6460, 0.6603, 0.6742, 0.6863, 0.6983, 0.7103, 0.7223,
    0.7344, 0.7464, 0.7584, 0.7705, 0.7825, 0.7945, 0.8065, 0.8186, 0.8306, 0.8423, 0.8510,
    0.8596, 0.8683, 0.8770, 0.8857, 0.8943, 0.9030, 0.9117, 0.9203, 0.9290, 0.9377, 0.9464,
    0.9550, 0.9637, 0.9723, 0.9770, 0.9808, 0.9847, 0.9885, 0.9923, 0.9962, 0.9991,
)  # fmt: skip


def lru_hit_rate(slots_per_layer: float, experts: int) -> float:
    """Share of routed experts that an LRU cache of this size holds when they are wanted.

    Between points the curve is taken as straight. No slots hit nothing and as many slots as
    experts hit always; the published curve ends at .0096 and .9991 there, from reading a plot.
    Other models of the family are taken to behave alike at the same share of their experts:
    nothing is published about them.

    Args:
        slots_per_layer: the cache's slots divided by the layers.
        experts: routed experts of a layer.
    """
    if slots_per_layer >= experts:
        return 1.0
    position = max(0.0, slots_per_layer / experts) * (len(LRU) - 1)
    below = int(position)
    points = (0.0, *LRU[1:-1], 1.0)
    return points[below] + (points[below + 1] - points[below]) * (position - below)
