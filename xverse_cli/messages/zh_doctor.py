"""Chinese: `xverse doctor`."""

from __future__ import annotations

DOCTOR_TEXTS: dict[str, str] = {
    "help.doctor": "检查本机，说明模型将如何运行。不下载任何内容，也不需要权重。",
    "help.doctor_gpu": "按所描述的机器（而非本机）规划：如 RTX 4060 8GB，或一个 TOML 文件"
    "（docs/memory-plan.md）。",
    "doctor.described": "所描述的机器：{name}",
    "doctor.system": "系统",
    "doctor.versions": "版本",
    "doctor.processor": "处理器",
    "doctor.instructions": "指令集",
    "doctor.gpu": "GPU",
    "doctor.gpu_is": "{name}，驱动 {driver}，计算能力 {capability}",
    "doctor.no_gpu": "无：{reason}",
    "doctor.untold": "未知",
    "doctor.disk": "磁盘",
    "doctor.disk_is": "{path} 有 {free_bytes} 可存放模型",
    "doctor.gpu_memory": "显存",
    "doctor.gpu_bandwidth": "显存读取",
    "doctor.link": "复制到 GPU",
    "doctor.memory": "内存",
    "doctor.memory_is": "{total_bytes}，可用 {free_bytes}",
    "doctor.bandwidth": "内存读取",
    "doctor.cpu_experts": "CPU 计算专家",
    "doctor.cores": "{rate}，{cores} 核",
    "doctor.rate": "{rate} GB/s",
    "doctor.kernels": "内核 {name}",
    "doctor.usable": "可用",
    "doctor.usable_with": "可用（{instructions}）",
    "doctor.refused": "不可用：{reason}",
    "doctor.plans": "{model}，预测：",
    "doctor.heading_precision": "精度",
    "doctor.heading_place": "权重位置",
    "doctor.heading_kv": "KV 缓存",
    "doctor.heading_context": "上下文",
    "doctor.heading_gpu": "显存",
    "doctor.heading_memory": "内存",
    "doctor.heading_rate": "词元/秒",
    "doctor.heading_first": "首个词元",
    "doctor.heading_load": "加载",
    "doctor.on_gpu": "全部在 GPU",
    "doctor.on_cpu": "全部在 CPU",
    "doctor.in_slots": "每层 {experts} 个专家中 {slots} 个在 GPU",
    "doctor.no_room": "放不下",
    "doctor.recommended": "推荐：{precision}，{place}，预测 {rate} 词元/秒",
    "doctor.faster": "或更快：{precision}，{place}，预测 {rate} 词元/秒",
    "doctor.windows": "在 Windows 上，PyPI 的 torch 不带 CUDA，一切都在处理器上运行。"
    "要使用 NVIDIA GPU，请用 WSL2；它默认只占一半内存，而权重需要 {store_bytes}。",
    "doctor.windows_install": "  1. 运行 wsl --install，然后重启。只需 Windows 的 GPU 驱动，"
    "WSL 内无需再装。",
    "doctor.windows_memory": "  2. 在 %UserProfile%\\.wslconfig 中写入 [wsl2]，下一行写"
    " memory={memory}GB；然后运行 wsl --shutdown。",
    "doctor.windows_again": "  3. 在 WSL 中按 Linux 的方式安装 xverse，再运行 xverse doctor。",
    "doctor.wsl_memory": "WSL 有 {host_bytes} 内存，而权重需要 {store_bytes}：请在"
    " %UserProfile%\\.wslconfig 的 [wsl2] 下用 memory= 放宽，然后运行 wsl --shutdown。",
    "doctor.mac": "在 Mac 上一切都在处理器上运行，约 {rate} 词元/秒：GPU 内核需要 CUDA 或 ROCm。",
}
