"""Chinese: `xverse bench --simulate`."""

from __future__ import annotations

SIMULATE_TEXTS: dict[str, str] = {
    "help.bench_simulate": "不测量本机，而是模拟一台机器：比较 GPU 容纳不下的专家的各种处理策略。"
    "不需要权重（docs/offload.md）。",
    "help.bench_machine": "配合 --simulate：机器，写法同 doctor --gpu；省略时为本机。",
    "help.bench_slots": "配合 --simulate：每层在 GPU 上的专家数，代替按容量计算的值。",
    "help.bench_routing": "配合 --simulate：使用 generate --record-routing 的记录，"
    "代替虚构的路由。",
    "simulate.round": "已模拟 {number}，共 {rounds}",
    "simulate.heading": "{model}，{precision}，上下文 {context}，机器 {machine}：模拟",
    "simulate.plan": "{slots}在 GPU；预测：{rate} 词元/秒",
    "simulate.slots": "每层 {experts} 个专家中 {slots} 个",
    "simulate.routing": "路由：{source}",
    "simulate.made_up": "虚构，与 XVERSE-MoE-A4.2B 公布的命中率相符",
    "simulate.column_policy": "保留策略",
    "simulate.column_way": "未命中",
    "simulate.column_rate": "词元/秒",
    "simulate.column_hits": "命中率",
    "simulate.column_cpu": "CPU 计算",
    "simulate.column_link": "经链路",
    "simulate.column_uploads": "上传",
    "simulate.column_wait_cpu": "等待 CPU",
    "simulate.column_wait_link": "等待链路",
    "simulate.policy_score_window": "评分窗口",
    "simulate.policy_lru": "LRU",
    "simulate.policy_lfu": "LFU",
    "simulate.policy_static": "静态",
    "simulate.policy_belady": "Belady（预知未来）",
    "simulate.policy_all_resident": "全部专家",
    "simulate.way_ahead": "混合，预取",
    "simulate.way_both": "混合",
    "simulate.way_cpu": "CPU",
    "simulate.way_link": "链路",
    "simulate.busy": "第一行的繁忙程度：{busy}",
    "simulate.part_gpu": "GPU",
    "simulate.part_cpu": "CPU",
    "simulate.part_link": "链路",
    "simulate.part_memory": "内存",
    "simulate.part_disk": "磁盘",
    "simulate.prompt": "{tokens} 个词元的提示词：{seconds} 秒，复制到 GPU {copied_bytes}",
}

# As in `en_errors`: (message, hint).
SIMULATE_ERRORS: dict[str, tuple[str, str]] = {
    "simulate.dense": (
        "此模型没有专家：它整个在 GPU 或 CPU 上。",
        "xverse doctor 可预测其速度。",
    ),
    "simulate.no_gpu": (
        "{name} 没有可模拟的 GPU。",
        "请指定其他机器，例如：--machine 4060。现有：{known}",
    ),
    "simulate.slots": (
        "{slots} 个槽位多于每层的 {experts} 个专家。",
        "请用 --slots 减少。",
    ),
    "simulate.other_trace": (
        "路由记录来自另一种模型：{model}，{layers} 层，每层 {experts} 个专家，"
        "每个词元选 {top_k} 个。",
        "请用 --model 指定那个模型。",
    ),
    "simulate.short": (
        "路由记录 {path} 有 {tokens} 个词元，至少需要 {least}。",
        "请记录得长一些：xverse generate --record-routing FILE --max-tokens 300",
    ),
    "simulate.real_only": (
        "--{option} 用于实测，不能与 --simulate 同用。",
        "请去掉它；xverse bench --help 说明了 --simulate 可用的选项。",
    ),
    "bench.not_simulated": ("--{option} 只用于 --simulate。", "请加上 --simulate，或去掉它。"),
}
