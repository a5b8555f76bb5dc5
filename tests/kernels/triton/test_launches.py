"""What a token costs in launches: docs/kernels.md says six a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.triton import interpreter  # noqa: F401  (before any kernel is imported)
from tools.aot.launches import _weights as synthetic_weights
from xverse_kernels.packing import BF16, INT4, INT8, WeightFormat
from xverse_kernels.triton import launch
from xverse_kernels.triton.backend import TritonBackend
from xverse_kernels.triton.launch import Abilities, Launcher
from xverse_runtime.config import ModelConfig
from xverse_runtime.kernel_versions import META
from xverse_runtime.kv_cache import KVPool
from xverse_runtime.model import Decoder
from xverse_runtime.rope import RotaryTable
from xverse_runtime.store.synthetic import A4_2B

LAYER = [
    "linear_kernel",
    "decode_attention_kernel",
    "linear_kernel",
    "router_kernel",
    "gate_up_kernel",
    "down_kernel",
]
# Operations of torch that put nothing on a GPU's queue: memory, and other views of it.
FREE = ("empty", "view", "_unsafe_view", "slice", "select", "as_strided", "detach", "alias", "t")


class Launches(TorchDispatchMode):
    """Names of kernels and of torch's operations, in the order in which they are launched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name, out = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        nothing_new = name == "to" and (out.dtype, out.device) == (args[0].dtype, args[0].device)
        if name not in FREE and not nothing_new:
            self.names.append(name)
        return out


def launches(layers: int, form: WeightFormat, cache: torch.dtype) -> list[str]:
    """Of one token of the full model's shape."""
    config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": layers})
    weights = synthetic_weights(config, torch.bfloat16, form)
    weights = replace(weights, layers=weights.layers[:1] * layers)
    launched, real = Launches(), Launcher.__call__

    def call(self: Launcher, *args: Any, **kwargs: Any) -> None:
        launched.names.append(self._kernel.fn.__name__)
        real(self, *args, **kwargs)

    with launch.recording(Abilities("wgmma", 90)), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Launcher, "__call__", call)
        decoder = Decoder(config, weights, TritonBackend(META), RotaryTable(config, 2048, META))
        pool = KVPool(config, 2048, cache, META)
        place = torch.zeros(1, dtype=torch.int32, device=META)
        ids = place.long()
        with launched:
            decoder.step(ids, pool, place, place, 1024)
    return launched.names


@pytest.mark.parametrize("cache", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("form", [BF16, INT8, INT4], ids=lambda form: form.name)
def test_a_token_takes_six_launches_a_layer(form: WeightFormat, cache: torch.dtype) -> None:
    """And no operation of torch among them; besides layers, the embedding and the head."""
    one, three = (launches(layers, form, cache) for layers in (1, 3))
    assert one == ["embedding", *LAYER, "linear_kernel"]
    assert three == ["embedding", *LAYER * 3, "linear_kernel"]
