"""Plans: within their budgets, without waste, better with more memory; the table of the design."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.fake_device import FakeDevice
from xverse_kernels.types import RoutedTokens
from xverse_runtime import decode_loop, model_sizes
from xverse_runtime.config import ModelConfig
from xverse_runtime.errors import DeviceError, ResourceError, UsageError, XverseError
from xverse_runtime.memory_plan import MemoryPlan, Wishes, plan_memory, plans_by_precision
from xverse_runtime.model_sizes import ModelSizes
from xverse_runtime.offload.costs import COORDINATION_S
from xverse_runtime.offload.hit_rates import hit_rate
from xverse_runtime.offload.machine import GIB, Machine
from xverse_runtime.offload.machines import find_machine
from xverse_runtime.offload.token_buffers import TokenBuffers
from xverse_runtime.plan_places import MOST_FEW, gpu_budget, host_budget
from xverse_runtime.prediction import predict
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.precision import PRESETS, bytes_per_token
from xverse_runtime.store.shard import shard_bytes
from xverse_runtime.store.synthetic import A4_2B
from xverse_runtime.suitable import READING_SPEED

# A36B's experts a layer, top-k and shared experts are not in our notes: those of A4.2B stand in.
A36B = {
    **A4_2B,
    "architectures": ["XverseMoeForCausalLM"],
    "hidden_size": 6144,
    "intermediate_size": 4096,
    "num_attention_heads": 48,
    "num_key_value_heads": 16,
    "num_hidden_layers": 50,
}
ENT_A5_7B = {**A4_2B, "num_hidden_layers": 32, "hidden_size": 3072, "vocab_size": 128000}
ENT_A4_2B = {**A4_2B, "moe_top_k": 8}
DENSE_7B = {
    "architectures": ["XverseForCausalLM"],
    "model_type": "xverse",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 100534,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}
FAMILY = [ModelConfig.from_dict(one) for one in (A4_2B, ENT_A4_2B, ENT_A5_7B, A36B, DENSE_7B)]
MODEL = FAMILY[0]
MB = 10**6
BOTH = ("bf16", "int8")


def random_machine(draw: random.Random) -> Machine:
    """A plausible machine: the GPU's memory is faster than the host's, the link slower."""
    host_total = int(2 ** draw.uniform(32, 39))
    bandwidth = draw.uniform(15e9, 300e9)
    machine = Machine(
        name="random",
        host_total=host_total,
        host_free=int(host_total * draw.uniform(0.2, 0.98)),
        host_bandwidth=bandwidth,
        cpu_expert_bandwidth=bandwidth * draw.uniform(0.1, 1),
        cpu_flops=draw.uniform(5e10, 5e12),
        cpu_cores=draw.randint(1, 128),
        pinnable=int(host_total * draw.uniform(0, 0.9)),
        disk_bandwidth=draw.uniform(1e8, 1e10),
    )
    if draw.random() < 0.1:
        return machine
    vram = int(2 ** draw.uniform(30.5, 37.5))
    link = draw.uniform(2e9, 60e9)
    return replace(
        machine,
        gpu="random",
        vram_total=vram,
        vram_free=int(vram * draw.uniform(0.3, 0.99)),
        vram_bandwidth=bandwidth * draw.uniform(1.5, 20),
        gpu_flops=draw.uniform(2e12, 4e14),
        link_to_gpu=link,
        link_to_host=link,
        copy_latency=draw.uniform(1e-6, 5e-5),
        launch_per_layer=draw.uniform(1e-5, 1e-4),
        launch_per_token=draw.uniform(1e-5, 1e-3),
    )


def random_wishes(draw: random.Random, config: ModelConfig) -> Wishes:
    def cap(most: float) -> int | None:
        return int(2 ** draw.uniform(30, most)) if draw.random() < 0.3 else None

    return Wishes(
        device=draw.choice(("auto", "auto", "cpu", "cuda")),
        precision=draw.choice(("auto", *PRESETS)),
        context=draw.choice((None, draw.randint(1, config.maximum_context))),
        kv=draw.choice(("auto", "bf16", "int8")),
        kv_formats=draw.choice((BOTH, ("bf16",))),
        gpu_memory=cap(36),
        cpu_memory=cap(38),
    )


def random_cases(count: int, seed: int) -> Iterator[tuple[ModelConfig, Machine, Wishes]]:
    draw = random.Random(seed)
    for _ in range(count):
        config = draw.choice(FAMILY)
        machine = random_machine(draw)
        wishes = random_wishes(draw, config)
        if not machine.has_gpu and wishes.device == "cuda":
            wishes = replace(wishes, device="auto")
        yield config, machine, wishes


def plan_or_none(config: ModelConfig, machine: Machine, wishes: Wishes) -> MemoryPlan | None:
    try:
        return plan_memory(config, machine, wishes)
    except ResourceError:
        return None


def check_within_budgets(plan: MemoryPlan, machine: Machine, wishes: Wishes) -> None:
    placed = plan.placement
    assert placed.gpu <= plan.gpu_budget <= max(0, machine.vram_free)
    assert placed.host + placed.mapped <= plan.host_budget <= machine.host_free
    assert wishes.gpu_memory is None or placed.gpu <= wishes.gpu_memory
    assert wishes.cpu_memory is None or placed.host + placed.mapped <= wishes.cpu_memory
    assert 0 <= placed.pinned <= machine.pinnable
    own = placed.kv_bytes + placed.workspace if placed.device == "cpu" else placed.staging
    assert placed.host >= 2**29 + max(placed.pinned, own)  # beside the program itself
    assert placed.mapped >= 0
    needed = placed.sizes.workspace(placed.prefill_chunk)
    assert needed <= placed.workspace
    if placed.device == "cuda":
        whole = placed.experts_resident and placed.embedding_device == "cuda"
        buffers = 0 if whole else placed.sizes.token_buffers(1 + MOST_FEW)
        dense = not placed.sizes.config.is_moe
        assert placed.steps == placed.sizes.steps() + (0 if dense else buffers)
    assert placed.prefill_chunk >= 1
    assert placed.pinned_experts <= placed.sizes.routed


def test_plans_never_exceed_a_budget_and_never_waste_a_slot() -> None:
    made = offloaded = 0
    for config, machine, wishes in random_cases(4000, seed=8):
        plan = plan_or_none(config, machine, wishes)
        if plan is None:
            continue
        made += 1
        check_within_budgets(plan, machine, wishes)
        placed = plan.placement
        assert placed.context == wishes.context or wishes.context is None
        assert wishes.precision in ("auto", placed.precision)
        assert plan.prediction.tokens_per_s > 0
        assert plan.prediction.first_token_s > 0
        assert plan.prediction.load_s >= 0
        if placed.device == "cuda" and not placed.experts_resident:
            offloaded += 1
            assert 0 <= placed.expert_slots < placed.sizes.routed_blocks
            assert plan.gpu_budget - placed.gpu < placed.sizes.block
    assert made > 2000
    assert offloaded > 400


@pytest.mark.parametrize("kind", ["vram", "host", "pinnable", "cap"])
def test_more_memory_never_makes_a_prediction_worse(kind: str) -> None:
    draw = random.Random(kind)
    compared = 0
    for config, machine, any_wishes in random_cases(800, seed=len(kind)):
        precision = draw.choice([*PRESETS])
        wishes = replace(
            any_wishes, precision=precision, kv="bf16", context=draw.choice((1000, 4096))
        )
        before = plan_or_none(config, machine, wishes)
        if before is None:
            continue
        more = int(2 ** draw.uniform(20, 36))
        if kind == "vram" and machine.has_gpu:
            total, free = machine.vram_total + more, machine.vram_free + more
            machine = replace(machine, vram_total=total, vram_free=free)
        elif kind == "host":
            total, free = machine.host_total + more, machine.host_free + more
            machine = replace(machine, host_total=total, host_free=free)
        elif kind == "pinnable":
            machine = replace(machine, pinnable=machine.pinnable + more)
        elif wishes.gpu_memory is not None:
            wishes = replace(wishes, gpu_memory=wishes.gpu_memory + more)
        after = plan_memory(config, machine, wishes)
        rate = before.prediction.tokens_per_s
        assert after.prediction.tokens_per_s >= rate * (1 - 1e-9), (machine, wishes)
        compared += 1
    assert compared > 200


def test_a_smaller_context_is_never_slower() -> None:
    machine = find_machine("4060")
    contexts = range(256, 8193, 256)
    plans = [
        plan_memory(MODEL, machine, Wishes(precision="int4", context=one, kv="bf16"))
        for one in contexts
    ]
    rates = [plan.prediction.tokens_per_s for plan in plans]
    assert rates == sorted(rates, reverse=True)


# ── the table of the design: 4096 tokens, a cache in bf16 ─────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "link", "slots", "rate"),
    [
        ("RTX 4060 8GB", None, 20, 36),
        ("RTX 4060 8GB", 25e9, 20, 40),  # on a link of 16 lanes
        ("RTX 3060 12GB", None, 39, 59),
        ("RTX 4070 12GB", None, 39, 70),
        ("RTX 4060 Ti 16GB", None, 59, 63),
        ("RTX 3090 24GB", None, 64, 200),
        ("RTX 4090 24GB", None, 64, 200),
    ],
)
def test_the_table_of_the_design(name: str, link: float | None, slots: int, rate: float) -> None:
    machine = find_machine(name)
    machine = replace(machine, link_to_gpu=link) if link else machine
    plan = plan_memory(MODEL, machine, Wishes(precision="int4", context=4096, kv="bf16"))
    assert plan.placement.slots_per_layer == pytest.approx(slots, abs=2)
    assert plan.prediction.tokens_per_s == pytest.approx(rate, rel=0.1)
    assert plan.placement.experts_resident == (slots == 64)
    assert plan.prediction.hit_rate == pytest.approx(hit_rate("lru", slots, 64), abs=0.03)


def test_80_gb_hold_everything_in_bf16() -> None:
    plan = plan_memory(MODEL, find_machine("H100"), Wishes(context=4096))
    placed = plan.placement
    assert (placed.precision, placed.kv, placed.embedding_device) == ("bf16", "bf16", "cuda")
    assert placed.experts_resident
    assert plan.prediction.tokens_per_s == pytest.approx(270, rel=0.1)


@pytest.mark.parametrize(
    ("precision", "context", "measured"),
    [("bf16", 4000, 281.7), ("bf16", 8100, 252.7), ("int8", 4000, 364.5), ("int4", 4000, 480.8)],
)
def test_what_was_measured_on_an_h100(precision: str, context: int, measured: float) -> None:
    """bench/results/runtime-h100-80gb-hbm3.md."""
    wishes = Wishes(precision=precision, context=context)
    plan = plan_memory(MODEL, find_machine("H100"), wishes)
    assert plan.prediction.tokens_per_s == pytest.approx(measured, rel=0.1)


def test_without_a_gpu_the_memory_bandwidth_decides() -> None:
    host = replace(find_machine("4060"), gpu="", vram_total=0, vram_free=0)
    plan = plan_memory(MODEL, host, Wishes(precision="int4", context=256))
    assert plan.placement.device == "cpu"
    assert plan.placement.gpu == 0
    rate = host.cpu_expert_bandwidth / bytes_per_token(MODEL, PRESETS["int4"])
    assert plan.prediction.tokens_per_s == pytest.approx(rate, rel=0.05)


# ── choices ───────────────────────────────────────────────────────────────────────────────────


def test_auto_takes_the_highest_precision_at_reading_speed() -> None:
    for name in ("4060", "3060", "4090", "H100"):
        machine = find_machine(name)
        rates = {
            precision: plan.prediction.tokens_per_s
            for precision, plan in plans_by_precision(MODEL, machine, Wishes(context=4096)).items()
            if plan is not None
        }
        chosen = plan_memory(MODEL, machine, Wishes(context=4096)).placement.precision
        fast = [precision for precision in PRESETS if rates[precision] >= READING_SPEED]
        assert chosen == fast[0]


def test_auto_is_int4_where_nothing_is_fast() -> None:
    slow = replace(find_machine("4060"), cpu_expert_bandwidth=1e9, link_to_gpu=1e9)
    plan = plan_memory(MODEL, slow, Wishes(context=4096))
    assert plan.placement.precision == "int4"
    assert plan.prediction.tokens_per_s < READING_SPEED


def test_an_int8_cache_has_to_buy_speed() -> None:
    wishes = Wishes(precision="int4", context=4096)
    small = plan_memory(MODEL, find_machine("4060"), wishes)
    plain = plan_memory(MODEL, find_machine("4060"), replace(wishes, kv="bf16"))
    assert (small.placement.kv, plain.placement.kv) == ("int8", "bf16")
    assert small.placement.expert_slots > plain.placement.expert_slots
    assert small.prediction.tokens_per_s > 1.05 * plain.prediction.tokens_per_s
    assert plan_memory(MODEL, find_machine("4090"), wishes).placement.kv == "bf16"
    only_bf16 = plan_memory(MODEL, find_machine("4060"), replace(wishes, kv_formats=("bf16",)))
    assert only_bf16.placement.kv == "bf16"
    on_host = plan_memory(MODEL, find_machine("4060"), replace(wishes, device="cpu"))
    assert on_host.placement.kv == "bf16"  # where there are no slots to buy


def test_an_unwished_context_shrinks_but_a_wish_does_not() -> None:
    machine = find_machine("4060")
    sizes = ModelSizes(MODEL, PRESETS["int4"])
    cap = sizes.dense + sizes.kv(4096, "bf16") + sizes.workspace(1024) + 300 * MB
    wishes = Wishes(device="cuda", precision="int4", gpu_memory=cap, kv="bf16")
    plan = plan_memory(MODEL, machine, wishes)
    assert 3000 < plan.placement.context < 8192
    with pytest.raises(ResourceError):
        plan_memory(MODEL, machine, replace(wishes, context=8192))


def test_a_cap_plays_a_smaller_gpu() -> None:
    wishes = Wishes(precision="int4", context=4096, gpu_memory=7 * GIB, kv="bf16")
    plan = plan_memory(MODEL, find_machine("H100"), wishes)
    assert plan.placement.slots_per_layer == pytest.approx(20, abs=2)
    assert plan.placement.gpu <= 7 * GIB


def test_a_gpu_that_would_be_slower_than_its_host_is_left_out() -> None:
    machine = replace(find_machine("4060"), vram_bandwidth=8e9)
    assert plan_memory(MODEL, machine, Wishes(context=4096)).placement.device == "cpu"
    wishes = Wishes(context=4096, device="cuda")
    assert plan_memory(MODEL, machine, wishes).placement.device == "cuda"


def test_experts_that_memory_cannot_hold_come_from_the_disk() -> None:
    machine = replace(find_machine("4060"), host_total=10 * GIB, host_free=8 * GIB)
    plan = plan_memory(MODEL, machine, Wishes(precision="int4", context=4096))
    roomy = plan_memory(MODEL, find_machine("4060"), Wishes(precision="int4", context=4096))
    assert 0 < plan.prediction.disk_rate < 1 - plan.prediction.hit_rate
    assert roomy.prediction.disk_rate == 0
    assert plan.prediction.tokens_per_s < roomy.prediction.tokens_per_s


def test_what_cannot_be_pinned_is_left_to_the_cpu() -> None:
    machine = find_machine("4060")
    wishes = Wishes(precision="int4", context=4096)
    pageable = plan_memory(MODEL, replace(machine, pinnable=0), wishes)
    assert pageable.placement.pinned == 0
    pinned = plan_memory(MODEL, machine, wishes)
    assert pinned.placement.pinned_experts == pinned.placement.sizes.routed
    assert pageable.prediction.tokens_per_s < pinned.prediction.tokens_per_s
    assert pageable.prediction.first_token_s > pinned.prediction.first_token_s


def test_a_dense_model_is_whole_on_the_gpu_or_on_the_host() -> None:
    dense = FAMILY[-1]
    assert plan_memory(dense, find_machine("3060"), Wishes(precision="int8")).placement.gpu > 0
    plan = plan_memory(dense, find_machine("4060"), Wishes(precision="bf16"))
    assert plan.placement.device == "cpu"


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


def refusal(config: ModelConfig, machine: Machine, wishes: Wishes) -> XverseError:
    with pytest.raises(XverseError) as caught:
        plan_memory(config, machine, wishes)
    return caught.value


def test_refusals_name_a_plan_that_is_possible() -> None:
    refused = 0
    for config, machine, wishes in random_cases(3000, seed=5):
        try:
            plan_memory(config, machine, wishes)
        except ResourceError as error:
            refused += 1
            if error.code == "plan.no_room":
                continue
            facts = error.params
            nearest = Wishes(
                device=str(facts["nearest_device"]),
                precision=str(facts["nearest_precision"]),
                context=int(str(facts["nearest_context"])),
                kv=wishes.kv,
                kv_formats=wishes.kv_formats,
            )
            plan = plan_memory(config, machine, nearest)
            check_within_budgets(plan, machine, nearest)
            rate = plan.prediction.tokens_per_s
            assert rate >= float(str(facts["nearest_rate"])) - 0.06
    assert refused > 100


def test_the_nearest_plan_is_a_shorter_context_first() -> None:
    machine = find_machine("4060")
    sizes = ModelSizes(MODEL, PRESETS["int8"])
    cap = sizes.dense + sizes.kv(5000, "bf16") + sizes.workspace(1024) + 100 * MB
    wishes = Wishes(device="cuda", precision="int8", context=8192, gpu_memory=cap, kv="bf16")
    facts = refusal(MODEL, machine, wishes).params
    assert (facts["nearest_device"], facts["nearest_precision"]) == ("cuda", "int8")
    assert 4000 < int(str(facts["nearest_context"])) < 5000
    assert int(str(facts["nearest_gpu_bytes"])) <= cap


def test_then_a_lower_precision_and_then_the_host() -> None:
    machine = find_machine("4060")
    wishes = Wishes(device="cuda", precision="bf16", context=2048, gpu_memory=4 * GIB)
    facts = refusal(MODEL, machine, wishes).params
    assert (facts["nearest_device"], facts["nearest_precision"]) == ("cuda", "int8")
    facts = refusal(MODEL, machine, replace(wishes, gpu_memory=GIB)).params
    assert (facts["nearest_device"], facts["nearest_context"]) == ("cpu", 2048)


def test_where_nothing_fits_no_plan_is_named() -> None:
    tiny = replace(find_machine("4060"), gpu="", host_total=GIB, host_free=GIB // 2)
    assert refusal(MODEL, tiny, Wishes()).code == "plan.no_room"


@pytest.mark.parametrize(
    ("wishes", "kind", "code"),
    [
        (Wishes(device="tpu"), UsageError, "device.unknown"),
        (Wishes(precision="fp8"), UsageError, "precision.unsupported"),
        (Wishes(kv="int4"), UsageError, "kv.unsupported"),
        (Wishes(context=8193), UsageError, "context.too_long"),
        (Wishes(device="cuda"), DeviceError, "device.unavailable"),
    ],
)
def test_wishes_that_make_no_sense(wishes: Wishes, kind: type[XverseError], code: str) -> None:
    host = replace(find_machine("4060"), gpu="")
    error = refusal(MODEL, host, wishes)
    assert isinstance(error, kind)
    assert error.code == code


# ── sizes and formulas ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", FAMILY)
@pytest.mark.parametrize("precision", PRESETS)
def test_sizes_are_those_of_the_store(config: ModelConfig, precision: str) -> None:
    files = StoreLayout(config, PRESETS[precision]).files()
    stored = sum(shard_bytes(file.specs) for file in files)
    assert ModelSizes(config, PRESETS[precision]).weights() == pytest.approx(stored, rel=1e-3)


def test_the_cache_is_as_large_as_the_design_says() -> None:
    sizes = ModelSizes(MODEL, PRESETS["int4"])
    assert sizes.kv(1, "bf16") == 286_720
    assert sizes.kv(1, "int8") == 286_720 // 2 * 82 // 80
    assert sizes.flops_per_token == pytest.approx(7.42e9, rel=0.05)


@pytest.mark.parametrize("config", FAMILY)
def test_a_piece_of_a_prompt_has_room_for_its_tensors(config: ModelConfig) -> None:
    """Those that the GPU kernels have at once, in bf16."""
    sizes = ModelSizes(config, PRESETS["int4"])
    slots = config.top_k + config.num_shared_experts if config.is_moe else 1
    kv_width = config.num_kv_heads * config.head_dim
    attention = 2 * (config.hidden_size + kv_width) + 2 * config.hidden_size  # q again, result
    states = 3 * config.hidden_size  # residual, normed, in the order of the products
    experts = slots * (config.hidden_size + config.intermediate_size)
    each = sizes.workspace(1) - sizes.workspace(0)
    assert each >= 2 * (attention + states + experts)


def test_a_resident_token_costs_its_bytes_and_its_launches() -> None:
    machine = find_machine("4090")
    plan = plan_memory(MODEL, machine, Wishes(precision="int4", context=4096))
    read = bytes_per_token(MODEL, PRESETS["int4"]) + plan.placement.kv_bytes
    seconds = read / machine.vram_bandwidth + 28 * machine.launch_per_layer
    seconds += machine.launch_per_token
    assert plan.prediction.tokens_per_s == pytest.approx(1 / seconds, rel=0.005)


def test_no_slots_are_six_misses_a_layer() -> None:
    machine = replace(find_machine("4060"), copy_latency=0.0)
    plan = plan_memory(MODEL, machine, Wishes(precision="int4", context=4096))
    empty = replace(plan.placement, expert_slots=0)
    block = empty.sizes.block
    # one of the six goes over the link: 12.5 GB/s of it are a sixth of the sum, no more
    layer = max(5 * block / machine.cpu_expert_bandwidth, 6 * block / machine.host_bandwidth)
    rest = (
        28 * (empty.sizes.attention + empty.sizes.router) + empty.kv_bytes + empty.sizes.head
    ) / (machine.vram_bandwidth)
    fixed = machine.launch_per_layer + COORDINATION_S
    seconds = 28 * (layer + fixed) + rest + machine.launch_per_token
    assert predict(empty, machine).tokens_per_s == pytest.approx(1 / seconds, rel=1e-6)


def test_budgets_leave_a_margin_and_obey_caps() -> None:
    machine = find_machine("4060")
    assert gpu_budget(machine, None) == machine.vram_free - 256 * 2**20
    assert gpu_budget(machine, 2 * GIB) == 2 * GIB
    assert gpu_budget(replace(machine, vram_free=100 * MB), None) == 0
    assert host_budget(machine, None) < machine.host_free


@pytest.mark.parametrize("name", ["4060", "3060", "4060ti", "3090", "h100"])
def test_without_offload_a_model_is_whole_on_one_side(name: str) -> None:
    config, machine = ModelConfig.from_dict(A4_2B), find_machine(name)
    for precision in PRESETS:
        wishes = Wishes(precision=precision, kv="bf16")
        with_it = plan_memory(config, machine, wishes)
        without = plan_memory(config, machine, replace(wishes, offload=False))
        assert not without.placement.offloads
        if with_it.placement.experts_resident:
            assert without == with_it
        else:
            assert without.placement.device == "cpu"


def test_what_decoding_keeps_is_in_the_plan() -> None:
    """The buffers of a few tokens as they are allocated; a bucket of graphs for each there is."""
    sizes = ModelSizes(MODEL, PRESETS["int4"])
    slots = MODEL.top_k + MODEL.num_shared_experts
    for tokens in (1, MOST_FEW):
        routed = RoutedTokens(
            normed=torch.zeros(tokens, MODEL.hidden_size),
            weights=torch.zeros(tokens, slots),
            expert_ids=torch.zeros(tokens, slots, dtype=torch.int32),
            logits=torch.zeros(tokens, MODEL.num_experts),
        )
        device = FakeDevice(memory=2**30)
        TokenBuffers.like(routed, tokens, device)
        assert device._memory == 2**30 - sizes.token_buffers(tokens)
    assert len(decode_loop.BUCKETS) == model_sizes.BUCKETS
    assert sizes.steps() > 3 * (2 * MODEL.num_layers + 1) * model_sizes.GRAPH_BYTES


def test_a_plan_leaves_room_for_it() -> None:
    """Experts to the last byte, and none in what the steps need."""
    machine = find_machine("RTX 4060 8GB")
    plan = plan_memory(MODEL, machine, Wishes(precision="int4", context=4096, kv="bf16"))
    placed = plan.placement
    beside = placed.sizes.steps() + placed.sizes.token_buffers(1 + MOST_FEW)
    taken = placed.sizes.dense + placed.kv_bytes + placed.workspace + placed.staging + beside
    assert placed.expert_slots == (plan.gpu_budget - taken) // placed.sizes.block
    assert placed.gpu == taken + placed.expert_slots * placed.sizes.block
