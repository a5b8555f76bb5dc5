"""Chinese: why something is so. Keys are what the runtime, the downloads and the system say."""

from __future__ import annotations

# What the system and Python say.
SYSTEM: dict[str, str] = {
    "No module named {name}": "没有模块 {name}",
    "[Errno {number}] {words}": "{words}（errno {number}）",
    "No such file or directory": "文件或目录不存在",
    "Permission denied": "权限不足",
    "permission denied": "权限不足",
    "Operation not permitted": "操作不被允许",
    "No space left on device": "磁盘空间已满",
    "Disk quota exceeded": "超出磁盘配额",
    "Read-only file system": "文件系统只读",
    "Is a directory": "是一个目录",
    "Not a directory": "不是目录",
    "File exists": "文件已存在",
    "File name too long": "文件名过长",
    "File too large": "文件过大",
    "Input/output error": "输入输出错误",
    "Too many open files": "打开的文件过多",
    "Cannot allocate memory": "无法分配内存",
    "Bad file descriptor": "文件描述符无效",
    "Name or service not known": "无法解析主机名",
    "Temporary failure in name resolution": "暂时无法解析主机名",
    "Network is unreachable": "网络不可达",
    "No route to host": "没有到主机的路由",
    "Connection refused": "连接被拒绝",
    "Connection reset by peer": "连接被对方重置",
    "Connection timed out": "连接超时",
    "timed out": "超时",
}

DETAILS: dict[str, str] = {
    **SYSTEM,
    # Devices.
    "requested": "由用户指定",
    "a CUDA device is present": "有 CUDA 设备",
    "this build of torch has no GPU support; for an NVIDIA GPU install one that has: {command}": (
        "此 torch 不支持 GPU；如有 NVIDIA GPU，请安装支持的版本：{command}"
    ),
    "torch finds no AMD GPU (is the amdgpu driver loaded?)": (
        "torch 找不到 AMD GPU（加载了 amdgpu 驱动吗？）"
    ),
    "no NVIDIA driver answers. For an NVIDIA GPU install the driver for Windows, {needed} or newer,"
    " from www.nvidia.com/drivers (for WSL too: none inside Linux) and restart": (
        "没有可用的 NVIDIA 驱动。如有 NVIDIA GPU，请从 www.nvidia.com/drivers 安装 {needed} 或"
        "更新的 Windows 驱动（WSL 也用它：不要在 Linux 内安装驱动），然后重启"
    ),
    "no NVIDIA driver is loaded here. For an NVIDIA GPU install {needed} or newer and restart."
    " Ubuntu: {command} (RTX 50: {package}); others: www.nvidia.com/drivers": (
        "没有加载 NVIDIA 驱动。如有 NVIDIA GPU，请安装 {needed} 或更新的驱动并重启。"
        "Ubuntu：{command}（RTX 50：{package}）；其他系统：www.nvidia.com/drivers"
    ),
    "the NVIDIA driver {found} is too old for torch's CUDA {cuda}, which needs {needed}:"
    " update the driver": (
        "NVIDIA 驱动 {found} 对于 torch 的 CUDA {cuda} 来说过旧，至少需要 {needed}：请更新驱动"
    ),
    "the NVIDIA driver {found} is too old for torch's CUDA {cuda}, which needs {needed}:"
    " update the driver, or, for a GPU up to compute capability 8.9, install a torch for an older"
    " CUDA ({command})": (
        "NVIDIA 驱动 {found} 对于 torch 的 CUDA {cuda} 来说过旧，至少需要 {needed}：请更新驱动；"
        "计算能力不超过 8.9 的 GPU 也可安装使用较旧 CUDA 的 torch（{command}）"
    ),
    "the NVIDIA driver {found} is loaded but shows no GPU. Where nvidia-smi shows none either:"
    " restart after an update of the driver, start a container with --gpus all; where it does:"
    " unset CUDA_VISIBLE_DEVICES": (
        "NVIDIA 驱动 {found} 已加载，但没有 GPU。如果 nvidia-smi 也看不到 GPU：更新驱动后请重启，"
        "容器请用 --gpus all 启动；如果看得到：请取消设置 CUDA_VISIBLE_DEVICES"
    ),
    "no build of torch has code for this GPU's compute capability {capability}: compute on the CPU"
    " or on another GPU": (
        "没有支持此 GPU 计算能力 {capability} 的 torch 版本：请在 CPU 或其他 GPU 上计算"
    ),
    "this build of torch has no code for this GPU's compute capability {capability}; install one"
    " that has: {command}": (
        "此 torch 不支持此 GPU 的计算能力 {capability}；请安装支持的版本：{command}"
    ),
    "this machine has no GPU that can be used": "这台机器没有可用的 GPU",
    "packed weights need the Triton kernels there": "打包权重在此设备上需要 Triton 内核",
    "packed weights need the Triton kernels on a GPU: {unpacked}": (
        "打包权重在 GPU 上需要 Triton 内核：{unpacked}"
    ),
    # Kernels.
    "no such backend; there is: {choices}": "没有这个后端，可选：{choices}",
    "these kernels compute on the CPU, not on {device}": "这些内核在 CPU 上计算，不支持 {device}",
    "its C extension is not built here (an install builds it where a C compiler and Python's"
    " header files are): {missing}": (
        "C 扩展尚未编译（有 C 编译器和 Python 头文件时，安装过程会编译）：{missing}"
    ),
    "triton is not installed: pip install triton (Linux only)": (
        "未安装 triton：pip install triton（仅限 Linux）"
    ),
    "Triton kernels need a GPU (on the CPU only under TRITON_INTERPRET=1, for tests)": (
        "Triton 内核需要 GPU（仅在测试时可用 TRITON_INTERPRET=1 在 CPU 上运行）"
    ),
    "Triton kernels need a CUDA or ROCm device, not {device}": (
        "Triton 内核需要 CUDA 或 ROCm 设备，不支持 {device}"
    ),
    "Triton needs compute capability 7.5, this GPU has {capability}: compute on the CPU or on"
    " another GPU": "Triton 需要计算能力 7.5，此 GPU 为 {capability}：请在 CPU 或其他 GPU 上计算",
    "Triton needs a C compiler. Debian, Ubuntu: {command}": (
        "Triton 需要 C 编译器。Debian、Ubuntu：{command}"
    ),
    "Triton needs Python's header files. Debian, Ubuntu: {command}": (
        "Triton 需要 Python 头文件。Debian、Ubuntu：{command}"
    ),
    "they round activations to integers, and fp32 asks for exact maths": (
        "它们把激活值舍入为整数，而 fp32 要求精确计算"
    ),
    "they compute on packed weights: xverse convert makes them": (
        "它们在打包权重上计算：可用 xverse convert 制作"
    ),
    "the reference kernels were asked for": "指定了 reference 内核",
    "they compute in bf16 or fp16, not in fp32": "它们以 bf16 或 fp16 计算，不支持 fp32",
    "they need widths that are multiples of {rows}, not {width}": (
        "它们要求宽度是 {rows} 的倍数，而不是 {width}"
    ),
    # What `-v` says of a loaded model.
    "device: {device} ({reason})": "设备：{device}（{reason}）",
    "precision: {parts}": "精度：{parts}",
    "kernels: {kernels}, {threads} CPU thread{plural}": "内核：{kernels}，{threads} 个 CPU 线程",
    "reference (the faster cpu kernels are missing: {missing})": (
        "reference（缺少更快的 cpu 内核：{missing}）"
    ),
    "reference (the faster triton kernels cannot run: {reason})": (
        "reference（更快的 triton 内核无法运行：{reason}）"
    ),
    "context: {tokens} tokens, KV cache {size} MiB ({dtype})": (
        "上下文：{tokens} 个词元，KV 缓存 {size} MiB（{dtype}）"
    ),
    # What was expected.
    "a number": "一个数",
    "a number above 0": "大于 0 的数",
    "a number above 0 and at most 1": "大于 0 且不超过 1 的数",
    "a number above 0, at most {maximum}": "大于 0 且不超过 {maximum} 的数",
    "a number from {minimum} up": "不小于 {minimum} 的数",
    "a number from {minimum} to {maximum}": "{minimum} 到 {maximum} 之间的数",
    "a whole number": "整数",
    "an integer from 0 up (0: off)": "不小于 0 的整数（0 表示关闭）",
    "an integer from {minimum} up": "不小于 {minimum} 的整数",
    "an integer from {minimum} to {maximum}": "{minimum} 到 {maximum} 之间的整数",
    "a name": "一个名称",
    "an object or null": "对象或 null",
    "true or false": "true 或 false",
    "strings that are not empty": "非空字符串",
    "an even head size": "偶数的头维度",
    "a head size above 2 with dynamic scaling": "动态缩放时大于 2 的头维度",
    "divides {number}": "能整除 {number} 的数",
    "at most {count} experts": "不超过 {count} 个专家",
    "at most {maximum}": "不超过 {maximum}",
    # Files of models.
    "file too large": "文件过大",
    "not a JSON object": "不是 JSON 对象",
    "no weight_map": "没有 weight_map",
    "{name} is not a {suffix} file": "{name} 不是 {suffix} 文件",
    "not an archive as torch.save writes it": "不是 torch.save 写出的归档",
    "{name} is not a tensor": "{name} 不是张量",
    "{name} holds no data": "{name} 没有数据",
    "{names} not listed": "未列出 {names}",
    "{part} in unknown format {name}": "{part} 的格式 {name} 未知",
    "the record of {name} is not a size and a digest": "{name} 的记录不是大小和摘要",
    "not a manifest of format {name}": "不是格式为 {name} 的清单",
    "roles {roles}; user and assistant must alternate": (
        "角色为 {roles}；user 和 assistant 必须交替出现"
    ),
    # Routing traces.
    "it does not begin like one": "文件开头不符",
    "its header is too long": "文件头过长",
    "its header makes no sense": "文件头没有意义",
    "a pass of {count} tokens": "一次计算 {count} 个词元",
    "wrong checksum": "校验和不符",
    "experts that cannot be": "专家编号不可能出现",
    "it ends in the middle of a pass": "在一次计算的中途结束",
    # Downloads.
    "no bytes for a while": "一段时间没有收到数据",
    "no connection in time": "连接超时",
    "the connection broke": "连接中断",
    "the connection was closed early": "连接提前关闭",
    "it is not wanted any more": "已不再需要",
    "too many redirects": "重定向过多",
    "the server sent another range": "服务器发来了另一段内容",
}
