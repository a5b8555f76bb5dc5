"""The table of kernels: a row is checked, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.gpu.inputs import Shape
from bench.gpu.parity import Check
from bench.gpu.timing import matmul_rate, microseconds, read_bandwidth
from bench.table import Report
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.launch import Workspace


class KernelRows:
    """Rows of a report, beside what the device reads and multiplies at the most."""

    def __init__(self, report: Report, shape: Shape) -> None:
        self._report = report
        self.shape = shape
        self.bandwidth = read_bandwidth()
        self.rate = matmul_rate()
        device = torch.device(shape.device)
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
        calls: Sequence[Callable[[], Any]],
        check: Check,
        count: float,
        flops: float = 0,
    ) -> None:
        """Time calls that each move ``count`` bytes.

        Args:
            kernel: first column.
            shape: second column.
            calls: take turns over buffers that no cache holds together.
            check: of what the first call gives.
            count: bytes.
            flops: of a call; 0 where bytes are all that counts.

        Raises:
            ValueError: the first call's result is wrong; nothing was timed.
        """
        try:
            check(calls[0]())
        except ValueError as error:
            raise ValueError(f"{kernel}, {shape}: {error}") from error
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
