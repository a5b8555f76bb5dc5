"""The misses of a layer: which are computed on the CPU, and which cross to the GPU first.

Both happen at the same time and the layer waits for the later one, so the best split has them end
together; it may also be all on one side. What each side costs is measured while running, apart for
layers where it works alone and where both work and share the host's memory: a split is compared
with what the simpler ways were seen to cost. Now and then a way that seems worse is tried again, in
a share of the time that is fixed, so that no estimate stays wrong for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from xverse_runtime.offload.costs import LinearCost
from xverse_runtime.offload.policy import Key

Way = Literal["cpu", "link", "both"]
WAYS: tuple[Way, ...] = ("cpu", "link", "both")

HYSTERESIS = 0.03  # a split is changed for another that saves at least this share of its time
TRIAL_SHARE = 0.001  # of the time, lost to trying another way with a number of misses
MOST_LOST = 20  # by a trial, in times of the usual way; more is taken for an accident
TRIAL_LAYERS = 64  # at least so many layers between two such trials
MOST_APART = 8  # numbers of misses that are told apart for it
MOST_CREDIT = 2.0  # background copies that can be saved up
# Share of guesses that must be right to be worth copies: so much in any case, and more for what the
# CPU loses to them (docs/offload.md).
LEAST_RIGHT, OF_LOSS, MOST_RIGHT = 0.2, 0.75, 0.95
FIRST_RIGHT = 0.5  # taken for granted before any guess was judged
LONGEST = 1.5  # layers that a copy ahead may take
GUESS_WEIGHT = 1 / 128  # of one guess in the share


@dataclass(frozen=True)
class Split:
    """What to do about the misses of a layer. Each is in ``cpu`` or in ``now``."""

    cpu: tuple[Key, ...]
    now: tuple[Key, ...]  # uploaded before the layer can end, and computed on the GPU
    background: tuple[Key, ...]  # of ``cpu``: to be uploaded as well, for later tokens
    usual_s: float | None = None  # of a trial: what the way that seems best would have taken

    @property
    def is_trial(self) -> bool:
        """Whether another way is tried than the one that seems best."""
        return self.usual_s is not None

    @property
    def way(self) -> Way:
        """Who works."""
        return _way(len(self.cpu), len(self.now))


class MissScheduler:
    """Ask `split` for each layer with misses, tell `observe` what it took."""

    def __init__(
        self, expert_bytes: int, cpu: LinearCost, link: LinearCost, *, contention: float = 0.0
    ) -> None:
        """
        Args:
            expert_bytes: of one routed expert.
            cpu: expected cost of computing experts on the CPU, by their bytes.
            link: expected cost of getting experts to the GPU and computing them there.
            contention: share of its speed that the CPU loses while an expert is copied.
        """
        self._contention = contention
        self._expert_bytes = expert_bytes
        self._costs = {
            ("cpu", False): cpu,
            ("link", False): link,
            ("cpu", True): LinearCost(cpu.fixed_s, cpu.bytes_per_s),
            ("link", True): LinearCost(link.fixed_s, link.bytes_per_s),
        }
        self._now_of: dict[int, int] = {}  # misses of a layer: how many of them cross now
        self._layers = 0
        self._seconds = 0.0
        # Of a way and a number of misses: layers and seconds as they were when it was last used.
        # Several numbers have to be seen, or fixed and variable costs are not told apart.
        self._used: dict[tuple[Way, int], tuple[int, float]] = {}
        self._credit = 0.0
        self._right = FIRST_RIGHT
        self._on_cpu = 0.0  # experts of a layer, on average
        self._now_on_cpu = 0  # of this layer

    def cost(self, side: Literal["cpu", "link"], *, shared: bool = False) -> LinearCost:
        """The running estimate of a side, alone or while the other works too."""
        return self._costs[side, shared]

    def seconds(self, cpu: int, now: int, link_busy_s: float = 0.0) -> float:
        """How long the misses of a layer are going to take."""
        shared = _way(cpu, now) == "both"
        of_cpu = self._costs["cpu", shared].seconds(cpu * self._expert_bytes)
        of_link = self._costs["link", shared].seconds(now * self._expert_bytes)
        return max(of_cpu, of_link + link_busy_s if now else 0.0)

    def split(
        self,
        misses: Sequence[Key],
        *,
        link_busy_s: float = 0.0,
        idle_s: float = 0.0,
        only: Literal["cpu", "link"] | None = None,
    ) -> Split:
        """Decide about a layer.

        Args:
            misses: those that the cache would like best first. Experts on their way are not among
                them: they are computed on the CPU, or waited for.
            link_busy_s: until the copy that is under way ends. What crosses now goes before all
                background copies that have not begun; these are begun one at a time.
            idle_s: the link's time between the misses of two layers, for background copies.
            only: the one way to take, whatever it costs.

        Returns:
            A split of all ``misses``.
        """
        count = len(misses)
        if not count:
            return Split((), (), ())
        now, tried = (count if only == "link" else 0), None
        if only is None:
            now = self._choose(count, link_busy_s)
        chosen_s = self.seconds(count - now, now, link_busy_s)
        if only is None:
            tried = self._trial(count, now, chosen_s, link_busy_s)
        crossing = now if tried is None else tried
        self._layers += 1
        self._seconds += chosen_s
        layer_s = self.seconds(count - crossing, crossing, link_busy_s)
        background = self._background(count - crossing, crossing, layer_s + idle_s, link_busy_s)
        on_cpu = tuple(misses[crossing:])
        self._now_on_cpu = len(on_cpu)
        usual_s = None if tried is None else chosen_s
        return Split(on_cpu, tuple(misses[:crossing]), on_cpu[:background], usual_s)

    def observe(
        self, split: Split, *, cpu_s: float | None = None, link_s: float | None = None
    ) -> None:
        """What a split took, as far as it is known.

        Args:
            split: as it was carried out.
            cpu_s: from the layer's beginning to the end of ``cpu``.
            link_s: from when the link was free to the end of ``now``, on the GPU.
        """
        if not (split.cpu or split.now):
            return
        way = split.way
        shared = way == "both"
        made_up_s = 0.0
        if split.usual_s is not None:
            # What a trial lost beyond what was allowed for, as far as it is no accident.
            expected_s = self.seconds(len(split.cpu), len(split.now))
            lost_s = max(cpu_s or 0.0, link_s or 0.0) - max(expected_s, split.usual_s)
            made_up_s = min(max(lost_s, 0.0), MOST_LOST * split.usual_s) / TRIAL_SHARE
        count = min(len(split.cpu) + len(split.now), MOST_APART)
        self._used[way, count] = (self._layers, self._seconds + made_up_s)
        if split.cpu and cpu_s is not None:
            self._costs["cpu", shared].observe(len(split.cpu) * self._expert_bytes, cpu_s)
        if split.now and link_s is not None:
            self._costs["link", shared].observe(len(split.now) * self._expert_bytes, link_s)

    def observe_background(self, seconds: float) -> None:
        """One expert crossed in the background while nothing else did."""
        self._costs["link", False].observe(self._expert_bytes, seconds)

    def prefetches(self, layer_s: float) -> bool:
        """Whether an expert that the next layer is expected to choose is worth a copy now.

        Args:
            layer_s: from one layer's choice to the next. A copy that takes much longer is in the
                way of what later layers need.
        """
        # A right guess saves the CPU an expert; a copy slows it while it computes its experts.
        lost = OF_LOSS * self._contention * self._on_cpu
        least = min(MOST_RIGHT, LEAST_RIGHT + lost)
        return self._right >= least and self.seconds(0, 1) <= LONGEST * layer_s

    def observe_guess(self, right: bool) -> None:
        """An expert was expected, sent ahead or not; and then its layer chose it, or not."""
        self._right += GUESS_WEIGHT * (right - self._right)
        self._on_cpu += GUESS_WEIGHT * (self._now_on_cpu - self._on_cpu)
        self._now_on_cpu = 0

    def _choose(self, count: int, link_busy_s: float) -> int:
        """How many cross now: the best, unless the last choice is nearly as good."""

        def seconds(now: int) -> float:
            return self.seconds(count - now, now, link_busy_s)

        best = min(range(count + 1), key=seconds)
        before = self._now_of.get(count)
        if before is None or seconds(best) < (1 - HYSTERESIS) * seconds(before):
            self._now_of[count] = best
        return self._now_of[count]

    def _trial(self, count: int, now: int, chosen_s: float, link_busy_s: float) -> int | None:
        """How many cross now if another way is due to be tried."""
        for way in WAYS:
            if way == _way(count - now, now) or (way == "both" and count < 2):
                continue
            layers, seconds = self._used.setdefault((way, min(count, MOST_APART)), (0, 0.0))
            if self._layers - layers < TRIAL_LAYERS:
                continue
            other = {"cpu": 0, "link": count, "both": self._best_of_both(count)}[way]
            lost_s = self.seconds(count - other, other, link_busy_s) - chosen_s
            if lost_s <= TRIAL_SHARE * (self._seconds - seconds):
                return other
        return None

    def _best_of_both(self, count: int) -> int:
        return min(range(1, max(count, 2)), key=lambda now: self.seconds(count - now, now))

    def _background(self, cpu: int, now: int, layer_s: float, link_busy_s: float) -> int:
        """How many copies fit into the time that the link is idle; fractions are saved up."""
        shared = cpu > 0
        nbytes = self._expert_bytes
        used_s = self._costs["link", shared].seconds(now * nbytes) + link_busy_s
        copy_s = self._costs["link", False].seconds(nbytes)
        self._credit += max(0.0, layer_s - used_s) / copy_s
        count = min(int(self._credit), cpu)
        self._credit = min(self._credit - count, MOST_CREDIT)
        return count


def extra_seconds(scheduler: MissScheduler, side: Literal["cpu", "link"], misses: int) -> float:
    """How much longer a layer takes with all of its misses on one side than with the best split."""
    if misses == 0:
        return 0.0
    alone = scheduler.seconds(misses, 0) if side == "cpu" else scheduler.seconds(0, misses)
    return alone - min(scheduler.seconds(misses - now, now) for now in range(misses + 1))


def _way(cpu: int, now: int) -> Way:
    if now == 0:
        return "cpu"
    return "both" if cpu else "link"
