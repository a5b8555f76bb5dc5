"""What memory holds before a kernel writes to it, in the interpreter and on a GPU."""

from __future__ import annotations

import torch

NAN = float("nan")
POISON_INT = -12345


def poison_of(dtype: torch.dtype) -> float | int:
    """A value that no kernel leaves behind by chance."""
    if dtype.is_floating_point:
        return NAN
    if dtype == torch.bool:
        return True
    return POISON_INT if torch.iinfo(dtype).bits > 8 else 77
