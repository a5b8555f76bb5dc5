"""English: `xverse bench --simulate`."""

from __future__ import annotations

SIMULATE_TEXTS: dict[str, str] = {
    "help.bench_simulate": "Simulate a machine instead of measuring this one: how policies for"
    " experts that do not fit on the GPU compare. No weights are needed (docs/offload.md).",
    "help.bench_machine": "With --simulate: the machine, as of doctor --gpu; this one without it.",
    "help.bench_slots": "With --simulate: experts a layer on the GPU instead of what fits.",
    "help.bench_routing": "With --simulate: a trace of generate --record-routing instead of a"
    " made-up one.",
    "simulate.round": "Simulated {number} of {rounds}",
    "simulate.heading": "{model} in {precision}, context {context}, on {machine}: a simulation",
    "simulate.plan": "{slots} on the GPU; predicted: {rate} tokens/s",
    "simulate.slots": "{slots} of {experts} experts a layer",
    "simulate.routing": "Routing: {source}",
    "simulate.made_up": "made up, fitted to the published hit rates of XVERSE-MoE-A4.2B",
    "simulate.column_policy": "keeps",
    "simulate.column_way": "misses",
    "simulate.column_rate": "tokens/s",
    "simulate.column_hits": "hits",
    "simulate.column_cpu": "on CPU",
    "simulate.column_link": "over link",
    "simulate.column_uploads": "uploads",
    "simulate.column_wait_cpu": "waits: CPU",
    "simulate.column_wait_link": "link",
    "simulate.policy_score_window": "score window",
    "simulate.policy_lru": "LRU",
    "simulate.policy_lfu": "LFU",
    "simulate.policy_static": "static",
    "simulate.policy_belady": "Belady (knows the future)",
    "simulate.policy_all_resident": "all experts",
    "simulate.way_ahead": "hybrid, prefetch",
    "simulate.way_both": "hybrid",
    "simulate.way_cpu": "CPU",
    "simulate.way_link": "link",
    "simulate.busy": "At work in the first row: {busy}",
    "simulate.part_gpu": "GPU",
    "simulate.part_cpu": "CPU",
    "simulate.part_link": "link",
    "simulate.part_memory": "memory",
    "simulate.part_disk": "disk",
    "simulate.prompt": "A prompt of {tokens} tokens: {seconds} s, {copied_bytes} copied to the GPU",
}

# As in `en_errors`: (message, hint).
SIMULATE_ERRORS: dict[str, tuple[str, str]] = {
    "simulate.dense": (
        "This model has no experts: it is whole on the GPU or on the CPU.",
        "xverse doctor predicts its speed.",
    ),
    "simulate.no_gpu": (
        "{name} has no GPU to simulate.",
        "Name another machine, for example: --machine 4060. There are: {known}",
    ),
    "simulate.slots": (
        "{slots} slots are more than the {experts} experts that a layer has.",
        "Choose fewer with --slots.",
    ),
    "simulate.other_trace": (
        "The trace was recorded of another kind of model: {model}, with {layers} layers of"
        " {experts} experts, {top_k} for each token.",
        "Name that model with --model.",
    ),
    "simulate.short": (
        "The trace {path} has {tokens} tokens; at least {least} are needed.",
        "Record a longer one: xverse generate --record-routing FILE --max-tokens 300",
    ),
    "simulate.real_only": (
        "--{option} is for measuring, not for --simulate.",
        "Leave it out; xverse bench --help tells what --simulate takes.",
    ),
    "bench.not_simulated": ("--{option} is for --simulate.", "Add --simulate, or leave it out."),
}
