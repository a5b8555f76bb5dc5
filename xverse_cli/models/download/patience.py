"""How long to put up with a bad line, in one place for all who talk over it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from xverse_cli.models.download.http import Connections


@dataclass(frozen=True)
class Patience:
    """How long to put up with a bad line.

    Args:
        tries: attempts in a row that bring no byte before a source is given up.
        first_wait_s, longest_wait_s: between attempts, doubled each time.
        ask_s: within which a source must take a connection before another one is asked; the
            system repeats its knocking after 1, 3 and 7 seconds.
        connect_s, stall_s: see `Connections`.
        receive_buffer: see `Connections`.
    """

    tries: int = 8
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    ask_s: float = 8.0
    connect_s: float = 15.0
    stall_s: float = 30.0
    receive_buffer: int | None = None

    def wait(self, failures: int, asked: float | None) -> float:
        """Seconds before the next attempt; what a server asks for goes before our own idea."""
        if asked is not None:
            return min(asked, 10 * self.longest_wait_s)
        longest: float = min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s)
        return longest * random.uniform(0.75, 1.0)

    def connections(self) -> Connections:
        return Connections(self.connect_s, self.stall_s, self.receive_buffer)
