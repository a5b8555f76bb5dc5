"""How often XVERSE-MoE-A4.2B finds an expert resident, as published.

Source: J. Liang and others, "Not All Models Suit Expert Offloading" (arXiv 2505.16056), read from
the vector data of plot/mchr.pdf in github.com/ljcleo/moe-lrc. 22,528 texts of 512 tokens, each with
a cache that starts empty and is shared by all layers. All layers of a token were judged by what was
resident before it, and an expert that came into a free slot counted as a hit: see docs/offload.md
for what that is worth.
"""

from __future__ import annotations

EXPERTS = 64  # of a layer of the model that was measured

# Hit rate of routed experts at 0, 1, … 64 slots a layer. The end points are those of the plot.
# The formatter would take a line for each number.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "lru": (
        0.0096, 0.0439, 0.0965, 0.1586, 0.2241, 0.2666, 0.2931, 0.3175, 0.3418, 0.3648, 0.3840,
        0.4029, 0.4221, 0.4414, 0.4595, 0.4766, 0.4938, 0.5109, 0.5281, 0.5441, 0.5598, 0.5746,
        0.5889, 0.6031, 0.6174, 0.6317, 0.6460, 0.6603, 0.6742, 0.6863, 0.6983, 0.7103, 0.7223,
        0.7344, 0.7464, 0.7584, 0.7705, 0.7825, 0.7945, 0.8065, 0.8186, 0.8306, 0.8423, 0.8510,
        0.8596, 0.8683, 0.8770, 0.8857, 0.8943, 0.9030, 0.9117, 0.9203, 0.9290, 0.9377, 0.9464,
        0.9550, 0.9637, 0.9723, 0.9770, 0.9808, 0.9847, 0.9885, 0.9923, 0.9962, 0.9991,
    ),
    "lfu": (
        0.0127, 0.0647, 0.1104, 0.1487, 0.1825, 0.2133, 0.2419, 0.2683, 0.2938, 0.3172, 0.3401,
        0.3625, 0.3829, 0.4034, 0.4238, 0.4436, 0.4621, 0.4807, 0.4990, 0.5162, 0.5333, 0.5504,
        0.5674, 0.5834, 0.5991, 0.6147, 0.6304, 0.6456, 0.6588, 0.6718, 0.6848, 0.6978, 0.7108,
        0.7239, 0.7369, 0.7499, 0.7629, 0.7759, 0.7889, 0.8020, 0.8150, 0.8280, 0.8406, 0.8499,
        0.8586, 0.8673, 0.8760, 0.8847, 0.8934, 0.9020, 0.9107, 0.9194, 0.9281, 0.9368, 0.9455,
        0.9542, 0.9628, 0.9715, 0.9776, 0.9814, 0.9851, 0.9888, 0.9925, 0.9963, 0.9997,
    ),
    "belady": (
        0.0139, 0.1519, 0.2734, 0.3563, 0.4176, 0.4646, 0.5043, 0.5381, 0.5675, 0.5942, 0.6186,
        0.6403, 0.6603, 0.6786, 0.6966, 0.7124, 0.7280, 0.7419, 0.7554, 0.7687, 0.7806, 0.7923,
        0.8032, 0.8132, 0.8231, 0.8331, 0.8420, 0.8491, 0.8563, 0.8635, 0.8706, 0.8778, 0.8849,
        0.8921, 0.8992, 0.9064, 0.9135, 0.9206, 0.9249, 0.9289, 0.9329, 0.9369, 0.9409, 0.9449,
        0.9489, 0.9529, 0.9569, 0.9609, 0.9650, 0.9690, 0.9730, 0.9770, 0.9809, 0.9830, 0.9846,
        0.9861, 0.9876, 0.9892, 0.9907, 0.9923, 0.9938, 0.9954, 0.9969, 0.9985, 0.9998,
    ),
}  # fmt: skip


def hit_rate(policy: str, slots: float, experts: int = EXPERTS) -> float:
    """The published hit rate, between its points by straight lines.

    Args:
        policy: ``lru``, ``lfu`` or ``belady``.
        slots: of a layer, on average; from none, which never hit, to all experts, which always do.
        experts: of a layer. For a model with another number this is the rate at the same share of
            resident experts, which nobody has measured.
    """
    points = (0.0, *PUBLISHED[policy][1:-1], 1.0)
    place = min(max(slots / experts, 0.0), 1.0) * EXPERTS
    below = min(int(place), EXPERTS - 1)
    return points[below] + (points[below + 1] - points[below]) * (place - below)
