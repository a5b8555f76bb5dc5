"""Decoding with some of the experts on the GPU, on a machine that is only described.

Driven by routing traces and by the objects that the runtime uses: policies, `ExpertSlots` and
`MissScheduler`, held together by `Coordinator`. docs/offload.md tells what is modelled and what is
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from xverse_runtime.offload.coordinator import Coordinator, Decision
from xverse_runtime.offload.costs import COORDINATION_S, GUESSING_S, LinearCost
from xverse_runtime.offload.expert_slots import ExpertSlots
from xverse_runtime.offload.machine import Machine
from xverse_runtime.offload.policy import ExpertPolicy, Key
from xverse_runtime.offload.prefetch import is_worth_guessing
from xverse_runtime.offload.scheduler import MissScheduler, Split, Way
from xverse_runtime.offload.simulator_clock import Process, Signal, all_of
from xverse_runtime.offload.simulator_hardware import Copy, Hardware, Span
from xverse_runtime.offload.simulator_host import HostExperts
from xverse_runtime.offload.simulator_report import Counts, Report
from xverse_runtime.offload.simulator_workload import Workload
from xverse_runtime.offload.synthetic_guesses import SyntheticGuesses
from xverse_runtime.offload.trace import RoutedToken

FOLLOWING = 0.9  # of the estimate of idle time, kept with each layer
GUESS_S = 6e-6  # of the GPU, a layer: one more router, and its copy to the host


@dataclass(frozen=True)
class Options:
    """What a simulation does about misses.

    Args:
        way: ``cpu`` or ``link`` for all of them, ``both`` as the scheduler says.
        floor: experts that every layer keeps.
        journal: whether to note every piece of work.
        keeps_crossed: whether an expert that crossed while its layer waited may get a slot.
        guessed: prefetch with so many of the guesses at the next layer's experts right; not at all
            without it.
    """

    way: Way = "both"
    floor: int = 0
    journal: bool = False
    keeps_crossed: bool = True
    guessed: float | None = None


class Simulation:
    """One machine, one model, one policy; `run` goes on where the last one ended."""

    def __init__(
        self,
        work: Workload,
        machine: Machine,
        slots: int,
        policy: ExpertPolicy,
        options: Options | None = None,
        host: HostExperts | None = None,
    ) -> None:
        """
        Args:
            work: of the model.
            machine: with a GPU.
            slots: on it, of all layers together.
            policy: who keeps them.
            options: see `Options`.
            host: where the experts lie on the host; all pinned without it.
        """
        options = options or Options()
        self.journal: list[Span] | None = [] if options.journal else None
        self.hardware = Hardware(machine, self.journal)
        self.hardware.link.next_background = self._next_upload
        self.scheduler = MissScheduler(
            work.block,
            LinearCost(2 * machine.copy_latency, machine.cpu_expert_bandwidth),
            LinearCost(2 * machine.copy_latency, machine.link_to_gpu),
            contention=machine.contention,
        )
        self._host = host or HostExperts(work.keys, len(work.keys), 0)
        book = ExpertSlots(work.layers, work.experts, slots, policy, floor=options.floor)
        self._may_send = self._may_upload = False  # ahead of a layer, and in the background
        self.way, self._keeps_crossed = options.way, options.keeps_crossed
        self._guesses = (
            None
            if options.guessed is None or not is_worth_guessing(slots, len(work.keys))
            else SyntheticGuesses(work.experts, work.top_k, options.guessed)
        )
        self.rules = Coordinator(book, self.scheduler, is_pinned=self._host.is_pinned)
        self._work = work
        self._everything_fits = slots >= work.layers * work.experts
        if self._everything_fits:
            book.fill(work.keys)
        self._counts = Counts()
        self._idle_s = 0.0
        self._chosen_at = 0.0  # when the host heard of the last layer's choice
        self._layer_s = 0.0  # from one choice to the next
        self._misses_over = 0.0  # when the last layer had all its experts
        self._cpu_works = 0
        self._coming: Signal | None = None  # of the background copy under way

    def run(self, tokens: Iterable[RoutedToken]) -> Report:
        """Decode ``tokens``.

        Returns:
            Of these tokens alone.
        """
        hardware, clock = self.hardware, self.hardware.clock
        self._counts = Counts()
        hardware.waits.clear()
        began, before, moved = clock.now, hardware.busy(), hardware.link.moved
        clock.run_until(clock.start(self._decode(tokens)))
        self._counts.to_gpu_bytes = hardware.link.moved - moved
        busy = {part: seconds - before[part] for part, seconds in hardware.busy().items()}
        return Report(clock.now - began, self._counts, busy, dict(hardware.waits))

    def _decode(self, tokens: Iterable[RoutedToken]) -> Process:
        machine, work = self.hardware.machine, self._work
        for token in tokens:
            waited_for = "host"
            if work.embedding_on_host:
                yield self.hardware.clock.delay(machine.copy_latency)
            for layer in range(work.layers):
                seconds = machine.launch_per_layer + work.before / machine.vram_bandwidth
                seconds += 0.0 if self._guesses is None else GUESS_S
                yield self.hardware.gpu.run(seconds, f"attention {layer}", waited_for)
                missing = self.rules.missing(layer, token.experts[layer][: work.top_k])
                # The GPU has the table of slots: it begins while the host learns of the choice.
                hits = work.top_k - len(missing)
                seconds = (work.always + hits * work.block) / machine.vram_bandwidth
                on_gpu = self.hardware.gpu.run(seconds, f"experts {layer}")
                self._counts.uses += work.top_k
                self._counts.hits += hits
                if self._everything_fits:
                    yield on_gpu
                    continue
                misses = _Misses()
                host = self.hardware.clock.start(self._misses(layer, missing, token, misses))
                yield all_of([on_gpu, host])
                self._leave(layer, token.experts[layer][: work.top_k])
                waited_for = misses.waited_for
            seconds = work.head / machine.vram_bandwidth + machine.launch_per_token
            yield self.hardware.gpu.run(seconds, "head", waited_for)
            self._counts.tokens += 1

    def _misses(
        self, layer: int, missing: Sequence[Key], token: RoutedToken, misses: _Misses
    ) -> Process:
        """What the host does about a layer, from the copy of the choice to its word to go on."""
        yield self.hardware.back.run(self.hardware.machine.copy_latency, f"choice {layer}")
        if layer:
            layer_s = self.hardware.clock.now - self._chosen_at
            self._layer_s += (1 - FOLLOWING) * (layer_s - self._layer_s)
        self._chosen_at = self.hardware.clock.now
        idle_s = self.hardware.clock.now - self._misses_over
        self._idle_s += (1 - FOLLOWING) * (idle_s - self._idle_s)
        guessing_s = 0.0 if self._guesses is None else GUESSING_S
        yield self.hardware.clock.delay(COORDINATION_S + guessing_s)
        decision = self.rules.decide(
            missing,
            link_busy_s=self.hardware.link.busy_s,
            idle_s=self._idle_s,
            only=None if self.way == "both" else self.way,
        )
        probabilities = token.probabilities[layer] if token.probabilities else None
        self.rules.slots.enter_layer()
        self.rules.note(layer, token.experts[layer], probabilities, self._work.top_k)
        if self._guesses is not None and layer + 1 < self._work.layers:
            following = token.experts[layer + 1][: self._work.top_k]
            self.rules.expect(layer + 1, self._guesses.of(following))
            self._may_send = self._coming is None  # behind what crosses now
        link = self.hardware.clock.start(self._over_link(layer, decision, misses))
        cpu = self.hardware.clock.start(self._on_cpu(layer, decision.split, misses))
        self.hardware.link.wake()  # for what is sent ahead
        yield all_of([link, cpu])
        self._misses_over = self.hardware.clock.now
        self.scheduler.observe(decision.split, cpu_s=misses.cpu_s, link_s=misses.link_s)
        self._counts.on_cpu += len(decision.split.cpu)
        self._counts.on_link += len(decision.split.now)
        self._counts.awaited += len(decision.awaited)
        guessed = self.rules.prefetch.guessed(layer)
        if guessed is not None and self._used(guessed, token, decision):
            self._counts.useful += 1

    def _on_cpu(self, layer: int, split: Split, misses: _Misses) -> Process:
        """Compute experts; their results, or the word that there are none, then go to the GPU."""
        work, machine, begun = self._work, self.hardware.machine, self.hardware.clock.now
        from_disk = sum(self._host.touch(key) for key in split.cpu) * work.block
        if from_disk:
            yield self.hardware.disk.run(from_disk / machine.disk_bandwidth, f"layer {layer}")
            self._counts.disk_bytes += from_disk
            misses.waited_for = "disk"
        if split.cpu:
            self._cpu_works += 1
            nbytes = len(split.cpu) * work.block
            flow = self.hardware.memory.start(nbytes, machine.cpu_expert_bandwidth)
            self.hardware.cpu.start()
            yield flow.done
            self.hardware.cpu.stop(f"{len(split.cpu)} experts {layer}")
            self._counts.cpu_bytes += nbytes
            misses.waited_for = misses.waited_for or "cpu"
        # Small enough for the GPU to read where it lies: it does not queue behind expert copies.
        yield self.hardware.clock.delay(machine.copy_latency)
        misses.waited_for = misses.waited_for or "host"
        misses.cpu_s = self.hardware.clock.now - begun if split.cpu else None

    def _over_link(self, layer: int, decision: Decision, misses: _Misses) -> Process:
        """Critical copies, each computed on the GPU when it has come."""
        link, now = self.hardware.link, decision.split.now
        awaited = [self._arrival(key) for key in decision.awaited]
        computed = [self.hardware.clock.start(self._compute(layer, one)) for one in awaited]
        copies = [
            self._copy(key, f"{key[1]} for layer {layer}", 0.0 if place else 1.0)
            for place, key in enumerate(now)
        ]
        for key, copy in zip(now, copies, strict=True):
            if self._keeps_crossed:
                copy.arrived.then(partial(self._keep, key))
            computed.append(self.hardware.clock.start(self._compute(layer, copy.arrived)))
        free = link.free
        if copies:
            link.copy_now(copies)
            yield free
            begun = self.hardware.clock.now
            yield all_of(computed)
            misses.link_s = self.hardware.clock.now - begun
        yield all_of(computed)

    def _arrival(self, key: Key) -> Signal:
        """Of an expert that is awaited."""
        is_coming = self.rules.slots.is_coming(key) or self.rules.prefetch.coming == key
        return self._coming if self._coming and is_coming else all_of([])

    def _keep(self, key: Key) -> None:
        self.rules.keep(key)

    def _used(self, key: Key, token: RoutedToken, decision: Decision) -> bool:
        """Whether the GPU computed an expert from where it was sent ahead of its layer."""
        is_chosen = key[1] in token.experts[key[0]][: self._work.top_k]
        prefetch = self.rules.prefetch
        return is_chosen and key not in decision.split.cpu and prefetch.is_there(key)

    def _leave(self, layer: int, chosen: Sequence[int]) -> None:
        """What was sent ahead and is of use may get a slot."""
        prefetched = self.rules.prefetch.there(layer)
        if prefetched is not None and prefetched in chosen and self._keeps_crossed:
            self._keep((layer, prefetched))
        self.rules.leave(layer, chosen)
        self._may_send = self._may_upload = True
        self.hardware.link.wake()
        self._may_send = self._may_upload = False

    def _compute(self, layer: int, arrived: Signal) -> Process:
        yield arrived
        seconds = self._work.block / self.hardware.machine.vram_bandwidth
        yield self.hardware.gpu.run(seconds, f"expert {layer}", "link")

    def _copy(self, key: Key, what: str, latencies: float) -> Copy:
        latency = latencies * self.hardware.machine.copy_latency
        return Copy(self._work.block, what, Signal(), latency, self._host.traffic(key))

    def _next_upload(self) -> Copy | None:
        """For the link when it has nothing critical to do."""
        ahead = self.rules.begin_prefetch(self._layer_s) if self._may_send else None
        if ahead is not None:
            copy = self._copy(ahead, f"{ahead[1]} ahead of layer {ahead[0]}", 1.0)
            self._coming = copy.arrived
            copy.arrived.then(self._prefetched)
            return copy
        begun = self.rules.begin_upload() if self._may_upload else None
        if begun is None:
            return None
        key, _ = begun
        copy = self._copy(key, f"{key[1]} of layer {key[0]}", 1.0)
        self._coming = copy.arrived
        self.hardware.clock.start(self._uploaded(key, copy.arrived))
        return copy

    def _prefetched(self) -> None:
        self._coming = None
        self.rules.prefetch.arrived()
        self._counts.prefetched += 1

    def _uploaded(self, key: Key, arrived: Signal) -> Process:
        begun, works = self.hardware.clock.now, self._cpu_works
        is_alone = self.hardware.cpu.is_stopped
        yield arrived
        self._coming = None
        self.rules.arrived()
        self._counts.background += 1
        if is_alone and works == self._cpu_works and self._host.is_pinned(key):
            self.scheduler.observe_background(self.hardware.clock.now - begun)


@dataclass
class _Misses:
    """What became of a layer's misses.

    Args:
        waited_for: what kept the GPU from going on, if not its own work.
        cpu_s: what the CPU took.
        link_s: what the link and then the GPU took.
    """

    waited_for: str = ""
    cpu_s: float | None = None
    link_s: float | None = None
