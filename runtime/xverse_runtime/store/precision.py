"""The precisions that users ask for by one word, and what they mean for each part."""

from __future__ import annotations

from xverse_runtime.store.manifest import StorePrecision

# Attention suffers most from rounding (the scores go through a softmax) and is a small part of
# the bytes, so it keeps one step more than the experts: docs/quantisation.md.
PRESETS = {
    "bf16": StorePrecision(experts="bf16", attention="bf16", head="bf16"),
    "int8": StorePrecision(experts="int8", attention="bf16", head="int8"),
    "int4": StorePrecision(experts="int4", attention="int8", head="int8"),
}
