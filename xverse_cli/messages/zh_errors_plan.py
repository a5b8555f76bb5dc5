"""Chinese: errors of described machines and of plans for them."""

from __future__ import annotations

# As in `en_errors`: (message, hint).
PLAN_ERRORS: dict[str, tuple[str, str]] = {
    "machine.unknown": (
        "没有名为“{name}”的机器。",
        "现有：{known}。其他机器可用 TOML 文件描述：docs/memory-plan.md",
    ),
    "machine.unreadable": ("无法读取机器文件 {path}：{detail}。", ""),
    "machine.invalid": ("机器文件 {path} 不是有效的 TOML：{detail}。", ""),
    "machine.unknown_key": (
        "机器文件 {path} 中有未知的键 {key}。",
        "已知的键：{known}",
    ),
    "machine.missing_key": (
        "机器文件 {path} 缺少 {key}。",
        "所有的键见 docs/memory-plan.md。",
    ),
    "machine.bad_value": ("机器文件 {path} 中，{key} 为“{value}”；应为：{expected}。", ""),
    "kv.unsupported": (
        "KV 缓存不能用 {kv} 存放（支持：{supported}）。",
        "请交给程序选择。",
    ),
    "plan.impossible": (
        "{context} 个词元的上下文、精度 {precision}、设备 {device} 放不下："
        "显存可用 {gpu_free_bytes}，内存可用 {host_free_bytes}。",
        "最接近的可行方案：--device {nearest_device} --precision {nearest_precision}"
        " --context {nearest_context}（显存 {nearest_gpu_bytes}，内存 {nearest_host_bytes}，"
        "预测 {nearest_rate} 词元/秒）。",
    ),
    "plan.no_room": (
        "本机完全放不下此模型：显存可用 {gpu_free_bytes}，内存可用 {host_free_bytes}。",
        "请关闭其他程序，或试用：--model demo",
    ),
}
