"""The experts of a layer that come to the device after it has begun with those that it had."""

from __future__ import annotations

import torch

from xverse_kernels.backend import KernelBackend
from xverse_kernels.types import Parts, RoutedTokens
from xverse_runtime.offload.coordinator import Decision
from xverse_runtime.offload.expert_cache import ExpertCache
from xverse_runtime.offload.table_rows import TableRows
from xverse_runtime.offload.token_buffers import TokenBuffers
from xverse_runtime.offload.transfer import Mark, Upload
from xverse_runtime.offload.uploads import Uploads


class LatePart:
    """Brings experts to a staging half, and computes them and those that are awaited."""

    def __init__(
        self, cache: ExpertCache, uploads: Uploads, kernels: KernelBackend, width: int
    ) -> None:
        """``width``: experts of a table."""
        self._cache = cache
        self._uploads = uploads
        self._kernels = kernels
        self._rows = TableRows(cache.device, width)
        self._is_empty = True
        self._table = cache.device.empty(width, dtype=torch.int32).fill_(-1)  # of what is computed

    def __call__(
        self, decision: Decision, routed: RoutedTokens, buffers: TokenBuffers, chosen: Mark
    ) -> tuple[Upload | None, dict[int, int]]:
        """Begin what a layer's misses need.

        Args:
            decision: about them.
            routed: what the device chose.
            buffers: ``late`` gets the results.
            chosen: behind the layer's choice, so also behind what used the staging half before.

        Returns:
            The upload that the layer waits for, if there is one; rows of experts computed here.
        """
        cache, now = self._cache, decision.split.now
        if not (now or decision.awaited):
            if not self._is_empty:
                self._send({})
            return None, {}
        rows = {key[1]: self._uploads.awaited_row(key) for key in decision.awaited}
        upload = None
        if now:
            staged = [(key, cache.rows.of_place(0, place)) for place, key in enumerate(now)]
            copies = [(cache.host.block(key), row) for key, row in staged]
            upload = cache.device.upload(cache.pool, copies, after=chosen)
            cache.device.compute_after(upload)
            rows.update((key[1], row) for key, row in staged)
        self._send(rows)
        if cache.device.checks:
            cache.device.reading(rows.values())
        self._kernels.expert_parts(routed, cache.blocks(self._table), buffers.late)
        return upload, rows

    def parts(self, buffers: TokenBuffers) -> Parts:
        """What was computed of a layer, by a table that is always in the same place."""
        return Parts(buffers.late, self._table)

    def _send(self, rows: dict[int, int]) -> None:
        self._is_empty = False  # for as long as it may be broken off
        self._rows.send_some(rows, self._table)
        self._is_empty = not rows
