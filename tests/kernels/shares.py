"""What slots add, as if several had computed it."""

from __future__ import annotations

import torch
from torch import Tensor

from xverse_kernels.types import Parts

EXPERTS = 9


def shared_out(shares: Tensor, tables: int) -> tuple[Tensor, list[Parts], Tensor]:
    """Slots' experts, and their ``shares`` [T, S, H] divided among ``tables`` and the rest: what
    is to be read nowhere is NaN."""
    generator = torch.Generator().manual_seed(3)
    tokens, slots, _ = shares.shape
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:slots] for _ in range(tokens)])
    owner = torch.randperm(EXPERTS, generator=generator) % (tables + 1)

    def of(one: int) -> Tensor:
        return torch.where((owner[ids] == one).unsqueeze(-1), shares, torch.nan)

    rows = torch.arange(EXPERTS, dtype=torch.int32)
    here = [Parts(of(one), torch.where(owner == one, rows, -1)) for one in range(tables)]
    return ids.int(), here, of(tables)
