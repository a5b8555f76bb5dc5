"""`ModelConfig`: the published ``config.json``, validated. `EngineConfig`: the user's wishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from xverse_runtime.errors import UnsupportedModelError
from xverse_runtime.model_dir import ModelDirectory

CONFIG_FILE = "config.json"
ARCHITECTURES = ("XverseForCausalLM", "XverseMoeForCausalLM")
# Any of these keys makes a config a mixture of experts; the vendor's class has defaults for all.
MOE_KEYS = (
    "num_experts",
    "moe_top_k",
    "num_shared_experts",
    "output_router_logits",
    "router_aux_loss_coef",
)
# Keys that change what the model computes, and the values that leave it as it is implemented here.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "norm_topk_prob": (True, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
}
MAX_SIZE = 2**24  # far above every model of the family, far below what overflows an index
MAX_LAYERS = 512
MAX_EXPERTS = 1024
# Far beyond what any model was trained with; together they keep every angle within fp32.
MAX_ROPE_THETA = 1e12
MAX_ROPE_FACTOR = 1e6
MAX_NORM_EPS = 1.0
# Contexts that are chosen to fit: never shorter than this but by the user, in steps of that.
SMALLEST_CONTEXT = 2048
CONTEXT_STEP = 256


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of the rotary embedding beyond the trained context; ``factor`` >= 1."""

    kind: Literal["linear", "dynamic"]
    factor: float


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one model. A dense model has ``num_experts == 0``."""

    hidden_size: int
    intermediate_size: int  # of one expert, or of the dense MLP
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    attention_bias: bool
    tie_word_embeddings: bool
    num_experts: int
    top_k: int
    num_shared_experts: int
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str | None  # as published: "bfloat16", "float16", "float32"
    source_name: str  # ``_name_or_path``: what the publisher called it, or ""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def trained_context(self) -> int:
        """Tokens the model handles as published.

        Linear scaling stretches the positions at every length, so it is part of the model;
        dynamic scaling only begins beyond the trained length and must be asked for.
        """
        linear = self.rope_scaling is not None and self.rope_scaling.kind == "linear"
        return self.maximum_context if linear else self.max_position_embeddings

    @property
    def maximum_context(self) -> int:
        """Tokens that can be asked for at most."""
        factor = self.rope_scaling.factor if self.rope_scaling else 1.0
        return int(self.max_position_embeddings * factor)

    @classmethod
    def from_dir(cls, directory: ModelDirectory) -> ModelConfig:
        """Read and validate ``config.json``.

        Raises:
            IntegrityError: the file is not JSON.
            UnsupportedModelError: ``config.missing_key``, ``config.bad_value`` or
                ``config.unsupported``, naming key and value.
        """
        return cls.from_dict(directory.read_json(CONFIG_FILE), str(directory.path / CONFIG_FILE))

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: str = CONFIG_FILE) -> ModelConfig:
        """The same from a parsed object; ``path`` is for messages only."""
        _refuse_unsupported(data)
        read = _Reader(data, path)
        hidden_size = read.integer("hidden_size")
        num_heads = read.integer("num_attention_heads")
        moe = any(key in data for key in MOE_KEYS) or "XverseMoeForCausalLM" in _architectures(data)
        num_experts = read.integer("num_experts", 64, 0, MAX_EXPERTS) if moe else 0
        config = cls(
            hidden_size=hidden_size,
            intermediate_size=read.integer("intermediate_size"),
            num_layers=read.integer("num_hidden_layers", maximum=MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=read.integer("num_key_value_heads", num_heads),
            vocab_size=read.integer("vocab_size"),
            max_position_embeddings=read.integer("max_position_embeddings"),
            rms_norm_eps=read.number("rms_norm_eps", 1e-6, MAX_NORM_EPS),
            rope_theta=read.number("rope_theta", 10000.0, MAX_ROPE_THETA),
            rope_scaling=_rope_scaling(data, path),
            attention_bias=read.boolean("attention_bias"),
            tie_word_embeddings=read.boolean("tie_word_embeddings"),
            num_experts=num_experts,
            top_k=read.integer("moe_top_k", 6) if num_experts else 0,
            num_shared_experts=read.integer("num_shared_experts", 0, 0, MAX_EXPERTS) if moe else 0,
            pad_token_id=read.token_id("pad_token_id"),
            bos_token_id=read.token_id("bos_token_id"),
            eos_token_ids=read.token_ids("eos_token_id"),
            dtype=read.dtype(),
            source_name=str(data.get("_name_or_path") or ""),
        )
        config._check_divisions(data, path)
        return config

    def _check_divisions(self, data: dict[str, Any], path: str) -> None:
        dynamic = self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"
        rules = [
            (self.hidden_size % self.num_heads == 0, "num_attention_heads", "divides hidden_size"),
            (self.head_dim % 2 == 0, "num_attention_heads", "an even head size"),
            # The formula of dynamic scaling divides by the head size less two.
            (
                self.head_dim > 2 or not dynamic,
                "num_attention_heads",
                "a head size above 2 with dynamic scaling",
            ),
            (
                self.num_heads % self.num_kv_heads == 0,
                "num_key_value_heads",
                "divides num_attention_heads",
            ),
            (self.top_k <= self.num_experts, "moe_top_k", f"at most {self.num_experts} experts"),
            (
                data.get("head_dim") in (None, self.head_dim),
                "head_dim",
                f"hidden_size / num_attention_heads = {self.head_dim}",
            ),
        ]
        for holds, key, expected in rules:
            if not holds:
                raise _bad_value(path, key, data.get(key), expected)


@dataclass(frozen=True)
class EngineConfig:
    """What to load a model for.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``, ``int8`` or ``int4``; fp32 means weights
            and all maths in fp32.
        backend: ``auto`` or a kernel backend by name.
        context_length: most tokens of prompt and reply together; ``None`` is the trained context.
        chat_template: a format's name, a Jinja file or Jinja source; ``None`` finds out.
        prefill_chunk: most prompt tokens computed at once; ``None`` chooses by device.
        kv: what keys and values are kept in: ``auto`` is the dtype of activations; ``bf16``; or
            ``int8``, which takes half the memory and rounds them.
        threads: CPU threads; ``None`` takes the physical cores, or one for a small model, for the
            C kernels, and leaves the choice to torch for others.
        cuda_graph: replay decoding steps as CUDA graphs where there are any.
        lookup: compute tokens that occurred before ahead, where that changes nothing.
        gpu_memory: most bytes to use of the GPU; ``None`` is what is free.
        cpu_memory: most bytes of the host for experts that a GPU cannot hold.
        forecast: measure the machine, about a second, to predict the speed of a store on it.
    """

    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    context_length: int | None = None
    chat_template: str | None = None
    prefill_chunk: int | None = None
    kv: str = "auto"
    threads: int | None = None
    cuda_graph: bool = True
    lookup: bool = True
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    forecast: bool = False


@dataclass(frozen=True)
class _Reader:
    """Typed access to a config; ``null`` counts as absent, a missing default as required."""

    data: dict[str, Any]
    path: str

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        if value is None and default is None:
            raise UnsupportedModelError("config.missing_key", key=key, path=self.path)
        return default if value is None else value

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        value = self._value(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            expected = f"an integer from {minimum} to {maximum}"
            raise _bad_value(self.path, key, value, expected)
        return value

    def number(self, key: str, default: float, maximum: float) -> float:
        value = self._value(key, default)
        if type(value) not in (int, float) or not 0 < value <= maximum:
            expected = f"a number above 0, at most {maximum:g}"
            raise _bad_value(self.path, key, value, expected)
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._value(key, False)
        if type(value) is not bool:
            raise _bad_value(self.path, key, value, "true or false")
        return value

    def dtype(self) -> str | None:
        value = self.data.get("torch_dtype") or self.data.get("dtype")
        return value if isinstance(value, str) else None

    def token_id(self, key: str) -> int | None:
        return None if self.data.get(key) is None else self.integer(key, minimum=0)

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.data.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        return tuple(_Reader({key: one}, self.path).integer(key, minimum=0) for one in values)


def _bad_value(path: str, key: str, value: object, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "config.bad_value", path=path, key=key, value=value, expected=expected
    )


def _architectures(data: dict[str, Any]) -> list[str]:
    names = data.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _refuse_unsupported(data: dict[str, Any]) -> None:
    names = _architectures(data)
    family = ", ".join(ARCHITECTURES)
    if names and not any(name in ARCHITECTURES for name in names):
        raise UnsupportedModelError(
            "config.unsupported", key="architectures", value=", ".join(names), supported=family
        )
    if not names and data.get("model_type") != "xverse":
        raise UnsupportedModelError(
            "config.unsupported",
            key="model_type",
            value=data.get("model_type"),
            supported="xverse",
        )
    for key, accepted in NEUTRAL_VALUES.items():
        if key in data and data[key] not in accepted:
            supported = ", ".join("null" if value is None else str(value) for value in accepted)
            raise UnsupportedModelError(
                "config.unsupported", key=key, value=data[key], supported=supported
            )


def _rope_scaling(data: dict[str, Any], path: str) -> RopeScaling | None:
    """``{"type": "linear" | "dynamic", "factor": number}``; newer files say ``rope_type``."""
    scaling = data.get("rope_scaling")
    if scaling is None:
        return None
    if not isinstance(scaling, dict):
        raise _bad_value(path, "rope_scaling", scaling, "an object or null")
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic"):
        raise UnsupportedModelError(
            "config.unsupported", key="rope_scaling.type", value=kind, supported="linear, dynamic"
        )
    factor: Any = scaling.get("factor")
    if type(factor) not in (int, float) or not 1 <= factor <= MAX_ROPE_FACTOR:
        expected = f"a number from 1 to {MAX_ROPE_FACTOR:g}"
        raise _bad_value(path, "rope_scaling.factor", factor, expected)
    return RopeScaling(kind, float(factor))
