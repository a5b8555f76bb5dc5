"""How fast a placement of a model will be on a machine: the formulas of docs/memory-plan.md."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.offload.costs import COORDINATION_S
from xverse_runtime.offload.hit_rates import hit_rate
from xverse_runtime.offload.machine import Machine

PROMPT_TOKENS = 512  # of the prompt whose first token is predicted


@dataclass(frozen=True)
class Placement:
    """What goes where. Bytes, unless it says otherwise.

    Args:
        sizes: the model at its precision.
        device: ``cuda`` or ``cpu``: where attention, cache and head are, and the slots.
        precision: the preset's name.
        context: tokens that the cache holds.
        kv: format of the cache.
        embedding_device: a gather of one row a token: on the host it costs a small copy.
        expert_slots: routed experts that the GPU holds, of all layers together.
        prefill_chunk: most tokens of a prompt computed at once.
        workspace: reserved for such a piece.
        steps: what decoding keeps beside weights and cache: scratch, graphs, buffers.
        staging: on the GPU, for two buffers of experts on their way; the host has the same.
        pinned: page-locked host memory: those buffers, and experts to copy directly.
        host: memory of the program on the host, pinned memory included.
        mapped: pages of the store that the host keeps beside that; the system may take them.
    """

    sizes: ModelSizes
    device: str
    precision: str
    context: int
    kv: str
    embedding_device: str
    expert_slots: int
    prefill_chunk: int
    workspace: int
    staging: int
    pinned: int
    host: int
    mapped: int
    steps: int = 0

    @property
    def experts_resident(self) -> bool:
        """Whether the GPU holds all: nothing moves while decoding."""
        return self.device == "cuda" and self.expert_slots == self.sizes.routed_blocks

    @property
    def offloads(self) -> bool:
        """Whether the GPU holds some of the experts and the host the others."""
        return self.device == "cuda" and not self.experts_resident

    @property
    def slots_per_layer(self) -> float:
        return self.expert_slots / self.sizes.config.num_layers

    @property
    def pinned_experts(self) -> int:
        return max(0, self.pinned - self.staging) if self.staging else 0

    @property
    def kv_bytes(self) -> int:
        return self.sizes.kv(self.context, self.kv)

    @property
    def gpu(self) -> int:
        """GPU memory in all."""
        if self.device != "cuda":
            return 0
        resident = self.sizes.dense + self.expert_slots * self.sizes.block
        if self.embedding_device == "cuda":
            resident += self.sizes.separate_embedding()
        return resident + self.kv_bytes + self.workspace + self.steps + self.staging


@dataclass(frozen=True)
class Prediction:
    """Rates are in tokens per second, times in seconds.

    Args:
        tokens_per_s: decoding with a full context, where it is slowest.
        first_token_s: after a new prompt of ``prompt_tokens``.
        load_s: until everything is in its place, from a disk whose files no memory holds.
        hit_rate: share of the routed experts that the GPU holds when they are wanted.
        disk_rate: share of them that has to come from the disk.
    """

    tokens_per_s: float
    first_token_s: float
    prompt_tokens: int
    load_s: float
    hit_rate: float
    disk_rate: float


def predict(placement: Placement, machine: Machine) -> Prediction:
    """Decoding, first token and loading of a placement."""
    return _Predictor(placement, machine).prediction()


@dataclass(frozen=True)
class _Predictor:
    placement: Placement
    machine: Machine

    def prediction(self) -> Prediction:
        on_gpu = self.placement.device == "cuda"
        token = self._gpu_token() if on_gpu else self._cpu_token()
        prompt = min(PROMPT_TOKENS, self.placement.context)
        piece = self._gpu_piece if on_gpu else self._cpu_piece
        pieces, rest = divmod(prompt, self.placement.prefill_chunk)
        times = pieces * piece(self.placement.prefill_chunk) + (piece(rest) if rest else 0.0)
        return Prediction(
            1 / token,
            times + token,
            prompt,
            self._load(),
            self._hit_rate if on_gpu else 0.0,
            self._disk_rate,
        )

    @property
    def _hit_rate(self) -> float:
        if self.placement.experts_resident or not self.placement.sizes.config.is_moe:
            return 1.0
        return hit_rate(
            "lru", self.placement.slots_per_layer, self.placement.sizes.config.num_experts
        )

    @property
    def _host_share(self) -> float:
        """Of the routed experts, how many the host's memory holds, pinned or mapped."""
        sizes, placement = self.placement.sizes, self.placement
        held = placement.pinned_experts + placement.mapped
        others = sizes.separate_embedding() if placement.embedding_device == "cpu" else 0
        others += sizes.dense if placement.device == "cpu" else 0
        return min(1.0, max(0, held - others) / sizes.routed) if sizes.routed else 1.0

    @property
    def _disk_rate(self) -> float:
        """Of the experts that tokens go to, how many have to come from the disk."""
        config = self.placement.sizes.config
        if not config.is_moe:
            weights = self.placement.sizes.weights()
            resident = self.placement.device == "cuda"
            return 0.0 if resident else max(0.0, 1 - self.placement.mapped / weights)
        if self.placement.device == "cpu":
            return 1 - hit_rate("lru", self._host_share * config.num_experts, config.num_experts)
        return self._gpu_disk_rate

    @property
    def _gpu_disk_rate(self) -> float:
        """Pinned experts never do, whether they are used or not. Of the others the system keeps the
        pages that were used last and the GPU its share, by chance partly the same: the same curve,
        for what either of them holds."""
        sizes, placement = self.placement.sizes, self.placement
        if placement.experts_resident:
            return 0.0
        either = 1 - (1 - placement.expert_slots / sizes.routed_blocks) * (1 - self._paged)
        experts = sizes.config.num_experts
        return self._pageable * (1 - hit_rate("lru", either * experts, experts))

    @property
    def _pageable(self) -> float:
        """Of the routed experts, how many are not pinned."""
        return max(0.0, 1 - self.placement.pinned_experts / self.placement.sizes.routed)

    @property
    def _paged(self) -> float:
        """Of those, how many the system has room for in its pages."""
        sizes, placement = self.placement.sizes, self.placement
        if not self._pageable:
            return 1.0
        others = sizes.separate_embedding() if placement.embedding_device == "cpu" else 0
        held = max(0, placement.mapped - others)
        return min(1.0, held / (self._pageable * sizes.routed))

    def _gpu_token(self) -> float:
        """Seconds of a decoded token: each layer's fixed cost, then its bytes."""
        sizes, machine = self.placement.sizes, self.machine
        layers, bandwidth = sizes.config.num_layers, machine.vram_bandwidth
        before = sizes.attention + sizes.router + self.placement.kv_bytes / layers
        everything = sizes.always + sizes.config.top_k * sizes.block
        layer = machine.launch_per_layer + before / bandwidth
        if self.placement.experts_resident:
            layer += everything / bandwidth
        else:  # the choice goes to the host, the sums come back
            layer += 2 * machine.copy_latency + self._shared_work(everything / bandwidth)
        token = layers * layer + sizes.head / bandwidth + machine.launch_per_token
        return token + (machine.copy_latency if self.placement.embedding_device == "cpu" else 0.0)

    def _shared_work(self, on_gpu: float) -> float:
        """Expected seconds of a layer's experts, on GPU and CPU at the same time.

        Each chosen expert misses independently. A layer never takes less than with all of them
        on the GPU: that the host relieves it when few miss is left out.
        """
        chosen, hits = self.placement.sizes.config.top_k, self._hit_rate
        return sum(
            comb(chosen, misses)
            * (1 - hits) ** misses
            * hits ** (chosen - misses)
            * max(on_gpu, COORDINATION_S + self._miss_time(misses))
            for misses in range(chosen + 1)
        )

    def _miss_time(self, misses: int) -> float:
        """Seconds until the results of that many misses of a layer are there.

        Pinned experts take the faster way, CPU or link, one by one; the others only the CPU.
        """
        if misses == 0:
            return 0.0
        block, machine = self.placement.sizes.block, self.machine
        alone = misses * block / machine.cpu_expert_bandwidth
        shared = min(self._split_time(misses, copied) for copied in range(misses + 1))
        routed = self.placement.sizes.routed
        pinned = min(1.0, self.placement.pinned_experts / routed)
        from_disk = self._disk_rate / max(1 - self._hit_rate, self._disk_rate)
        disk = misses * from_disk * block / machine.disk_bandwidth
        return pinned * shared + (1 - pinned) * alone + disk

    def _split_time(self, misses: int, copied: int) -> float:
        """With ``copied`` of them over the link; host memory feeds both."""
        block, machine = self.placement.sizes.block, self.machine
        on_cpu = (misses - copied) * block / machine.cpu_expert_bandwidth
        on_link = copied * block / machine.link_to_gpu + (machine.copy_latency if copied else 0.0)
        return max(on_cpu, on_link, misses * block / machine.host_bandwidth)

    def _cpu_token(self) -> float:
        """Decoding on the CPU reads weights and cache once."""
        sizes, machine = self.placement.sizes, self.machine
        routed = sizes.config.num_layers * sizes.config.top_k * sizes.block
        weights = (sizes.dense + routed) / machine.cpu_expert_bandwidth
        read = routed if sizes.config.is_moe else sizes.dense
        from_disk = self._disk_rate * read / machine.disk_bandwidth
        return weights + self.placement.kv_bytes / machine.host_bandwidth + from_disk

    def _touched(self, tokens: int) -> float:
        """Bytes of routed experts that a piece of a prompt needs: tokens choose independently."""
        config = self.placement.sizes.config
        if not config.is_moe:
            return 0.0
        return self.placement.sizes.routed * (1 - (1 - config.top_k / config.num_experts) ** tokens)

    def _gpu_piece(self, tokens: int) -> float:
        """Computing, or streaming the experts that are not there, whichever takes longer."""
        sizes, machine, placement = self.placement.sizes, self.machine, self.placement
        touched = self._touched(tokens)
        computing = tokens * sizes.flops_per_token / machine.gpu_flops
        reading = (sizes.dense + touched) / machine.vram_bandwidth
        if placement.experts_resident:
            return max(computing, reading)
        absent = touched * (1 - placement.expert_slots / sizes.routed_blocks)
        # pageable experts are first copied to a buffer: read, written and read once more
        slow = min(machine.link_to_gpu, machine.host_bandwidth / 3)
        pinned = min(1.0, placement.pinned_experts / sizes.routed)
        streaming = absent * (pinned / machine.link_to_gpu + (1 - pinned) / slow)
        streaming += absent * self._pageable * (1 - self._paged) / machine.disk_bandwidth
        return max(computing, reading, streaming)

    def _cpu_piece(self, tokens: int) -> float:
        sizes, machine = self.placement.sizes, self.machine
        touched = self._touched(tokens)
        computing = tokens * sizes.flops_per_token / machine.cpu_flops
        reading = (sizes.dense + touched) / machine.cpu_expert_bandwidth
        share = 1 - self._host_share if sizes.config.is_moe else self._disk_rate
        read = touched if sizes.config.is_moe else sizes.dense
        return max(computing, reading) + share * read / machine.disk_bandwidth

    def _load(self) -> float:
        """Seconds to read what is to lie on the GPU, in pinned memory, or in mapped pages."""
        placement, sizes = self.placement, self.placement.sizes
        if placement.device == "cpu":
            return placement.mapped / self.machine.disk_bandwidth
        resident = placement.gpu - placement.kv_bytes - placement.workspace - placement.staging
        slowest = min(self.machine.disk_bandwidth, self.machine.link_to_gpu)
        # pinned and mapped experts are read once even where the GPU holds them too
        on_host = placement.pinned_experts + placement.mapped
        both = min(on_host, placement.expert_slots * sizes.block)
        return (resident - both) / slowest + on_host / self.machine.disk_bandwidth
