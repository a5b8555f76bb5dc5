"""English: errors of described machines and of plans for them."""

from __future__ import annotations

# As in `en_errors`: (message, hint).
PLAN_ERRORS: dict[str, tuple[str, str]] = {
    "machine.unknown": (
        'No machine is known by the name "{name}".',
        "There are: {known}. Others can be described in a TOML file: docs/memory-plan.md",
    ),
    "machine.unreadable": ("The machine file {path} cannot be read: {detail}.", ""),
    "machine.invalid": ("The machine file {path} is not valid TOML: {detail}.", ""),
    "machine.unknown_key": (
        "Unknown key {key} in the machine file {path}.",
        "Known keys: {known}",
    ),
    "machine.missing_key": (
        "The machine file {path} has no {key}.",
        "docs/memory-plan.md tells all keys.",
    ),
    "machine.bad_value": (
        'In the machine file {path}, {key} is "{value}"; expected {expected}.',
        "",
    ),
    "kv.unsupported": (
        "The KV cache cannot be kept in {kv} (supported: {supported}).",
        "Leave the choice to the program.",
    ),
    "plan.impossible": (
        "A context of {context} tokens with precision {precision} and device {device} does not"
        " fit: {gpu_free_bytes} of the GPU and {host_free_bytes} of main memory can be used.",
        "The nearest that fits: --device {nearest_device} --precision {nearest_precision}"
        " --context {nearest_context} ({nearest_gpu_bytes} of the GPU, {nearest_host_bytes} of"
        " main memory, {nearest_rate} tokens/s predicted).",
    ),
    "plan.no_room": (
        "The model does not fit this machine at all: {gpu_free_bytes} of the GPU and"
        " {host_free_bytes} of main memory can be used.",
        "Close other programs, or try: --model demo",
    ),
}
