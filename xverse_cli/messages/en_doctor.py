"""English: `xverse doctor`."""

from __future__ import annotations

DOCTOR_TEXTS: dict[str, str] = {
    "help.doctor": "Look at this machine and say how a model will run on it."
    " Nothing is downloaded, and no weights are needed.",
    "help.doctor_gpu": "Plan for a machine that is described instead of this one: RTX 4060 8GB, or"
    " a TOML file (docs/memory-plan.md).",
    "doctor.described": "Described machine: {name}",
    "doctor.described_by_name": "Described machine: {name}, in a computer with the memory and"
    " processor below, whatever this one has. A TOML file describes another"
    " (docs/memory-plan.md).",
    "doctor.system": "System",
    "doctor.versions": "Versions",
    "doctor.processor": "Processor",
    "doctor.instructions": "Instructions",
    "doctor.gpu": "GPU",
    "doctor.gpu_is": "{name}, driver {driver}, compute capability {capability}",
    "doctor.no_gpu": "none: {reason}",
    "doctor.untold": "not told",
    "doctor.disk": "Disk",
    "doctor.disk_is": "{free_bytes} free for models in {path}",
    "doctor.gpu_memory": "GPU memory",
    "doctor.gpu_bandwidth": "GPU reads",
    "doctor.link": "Copies to the GPU",
    "doctor.memory": "Memory",
    "doctor.memory_is": "{total_bytes}, {free_bytes} free",
    "doctor.bandwidth": "Memory reads",
    "doctor.cpu_experts": "Experts on the CPU",
    "doctor.cores": "{rate}, {cores} cores",
    "doctor.rate": "{rate} GB/s",
    "doctor.kernels": "Kernels {name}",
    "doctor.usable": "usable",
    "doctor.usable_with": "usable ({instructions})",
    "doctor.refused": "not usable: {reason}",
    "doctor.plans": "{model}, predicted:",
    "doctor.heading_precision": "PRECISION",
    "doctor.heading_place": "WEIGHTS",
    "doctor.heading_kv": "KV",
    "doctor.heading_context": "CONTEXT",
    "doctor.heading_gpu": "GPU",
    "doctor.heading_memory": "MEMORY",
    "doctor.heading_rate": "TOKENS/S",
    "doctor.heading_first": "FIRST TOKEN",
    "doctor.heading_load": "LOADING",
    "doctor.on_gpu": "all on the GPU",
    "doctor.on_cpu": "all on the CPU",
    "doctor.in_slots": "{slots} of {experts} experts a layer on the GPU",
    "doctor.no_room": "does not fit",
    "doctor.recommended": "Recommended: {precision}, {place}, {rate} tokens/s predicted",
    "doctor.faster": "Or, faster: {precision}, {place}, {rate} tokens/s predicted",
    "doctor.fetches": "to fetch: {fetch_bytes}, packed as it comes to {store_bytes}",
    "doctor.packs": "packed: {store_bytes}",
    "doctor.disk_enough": "{needs}; {free_bytes} of disk are free",
    "doctor.disk_short": "{needs}; too much for the disk, which has {free_bytes} free",
    "doctor.windows": "On Windows, torch from PyPI has no CUDA: everything runs on the processor."
    " For an NVIDIA GPU use WSL2, which takes half of the memory unless told otherwise; the weights"
    " need {store_bytes} of it.",
    "doctor.windows_install": "  1. wsl --install, then restart. The GPU's driver for Windows is"
    " enough; install none inside.",
    "doctor.windows_memory": "  2. In %UserProfile%\\.wslconfig write [wsl2] and, on the next line,"
    " memory={memory}GB; then wsl --shutdown.",
    "doctor.windows_again": "  3. Inside WSL, install xverse as on Linux and run xverse doctor.",
    "doctor.wsl_memory": "WSL has {host_bytes} of memory, and the weights need {store_bytes}: allow"
    " it more with memory= in %UserProfile%\\.wslconfig, below [wsl2], then wsl --shutdown.",
    "doctor.mac": "On a Mac everything runs on the processor, at about {rate} tokens/s: the GPU"
    " kernels need CUDA or ROCm.",
}
