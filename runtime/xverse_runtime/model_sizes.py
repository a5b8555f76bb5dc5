"""Bytes of a model's parts, as plans place them and predictions read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from xverse_runtime.config import ModelConfig
from xverse_runtime.store.layout import StoreLayout
from xverse_runtime.store.manifest import StorePrecision

KV_BITS = {"bf16": 16, "int8": 8}
SCALE_BYTES = 2  # int8 keys and values have one fp16 scale a head and token
# Of products on unpacked weights, of sampling and of the library's own, whatever a prompt's length.
FIXED_WORKSPACE = 96 * 2**20
SCRATCH = 2**22 + 2**18  # of the kernels: partial sums and counters, allocated once
GRAPH_BYTES = 2**17  # a captured graph takes of the driver: an estimate, not measured
BUCKETS = 3  # lengths of the past that steps are captured for
STATES = 10  # tensors as wide as the hidden state that are alive at once in a layer of a prompt


@dataclass(frozen=True)
class ModelSizes:
    """A model at one precision. Everything is in bytes unless it says otherwise."""

    config: ModelConfig
    precision: StorePrecision

    @cached_property
    def block(self) -> int:
        """One expert; the MLP of a dense model."""
        return StoreLayout(self.config, self.precision).expert_layout.block_bytes

    @cached_property
    def attention(self) -> int:
        """The four matrices of a layer."""
        hidden, form = self.config.hidden_size, self.precision.attention_form
        kv_width = self.config.num_kv_heads * self.config.head_dim
        return 2 * form.matrix_bytes(hidden, hidden) + 2 * form.matrix_bytes(kv_width, hidden)

    @property
    def router(self) -> int:
        """Of a layer, in fp32, with its norms."""
        return 4 * self.config.hidden_size * (self.config.num_experts + 2)

    @property
    def always(self) -> int:
        """Blocks of a layer that every token reads: shared experts, or the dense MLP."""
        return self.block * (self.config.num_shared_experts if self.config.is_moe else 1)

    @property
    def layer(self) -> int:
        """Everything of a layer but its routed experts."""
        return self.attention + self.router + self.always

    @property
    def embedding(self) -> int:
        """A table of bf16 of which a token reads one row."""
        return 2 * self.config.vocab_size * self.config.hidden_size

    @cached_property
    def head(self) -> int:
        """The output layer; tied to the embedding it is that table, read whole."""
        if self.config.tie_word_embeddings:
            return self.embedding
        form = self.precision.head_form
        return form.matrix_bytes(self.config.vocab_size, self.config.hidden_size)

    @property
    def dense(self) -> int:
        """Everything but routed experts and the embedding."""
        return self.config.num_layers * self.layer + self.head

    @property
    def routed_blocks(self) -> int:
        """How many routed experts all layers have."""
        return self.config.num_layers * self.config.num_experts

    @property
    def routed(self) -> int:
        return self.routed_blocks * self.block

    def separate_embedding(self) -> int:
        """The embedding where it is not the head itself."""
        return 0 if self.config.tie_word_embeddings else self.embedding

    def weights(self) -> int:
        return self.dense + self.routed + self.separate_embedding()

    def kv(self, tokens: int, form: str) -> int:
        """Keys and values of all layers."""
        config = self.config
        vectors = 2 * config.num_layers * config.num_kv_heads * tokens
        scale = SCALE_BYTES if form == "int8" else 0
        return vectors * (config.head_dim * KV_BITS[form] // 8 + scale)

    def workspace(self, tokens: int) -> int:
        """The most that a piece of a prompt of so many tokens needs beside weights and cache.

        Of each token the inner and outer results of its experts, and states of the layer; of the
        layer the largest matrix, unpacked to bf16, twice.
        """
        config = self.config
        slots = config.top_k + config.num_shared_experts if config.is_moe else 1
        experts = slots * (4 * config.hidden_size + 2 * config.intermediate_size)
        each = experts + STATES * 2 * config.hidden_size
        qkv_rows = config.hidden_size + 2 * config.num_kv_heads * config.head_dim
        unpacked = 2 * 2 * qkv_rows * config.hidden_size
        return tokens * each + unpacked + 4 * 2 * config.vocab_size + FIXED_WORKSPACE

    def steps(self) -> int:
        """What decoding keeps: scratch memory of the kernels, and the graphs of all buckets with
        the results in them. Counted as where experts are divided, with two graphs a layer."""
        config = self.config
        results = 4 * config.vocab_size + config.num_layers * 8 * config.hidden_size
        graphs = (2 * config.num_layers + 1) * GRAPH_BYTES
        return SCRATCH + BUCKETS * (graphs + results)

    def token_buffers(self, tokens: int) -> int:
        """The parts of a layer's sum where experts are divided (`TokenBuffers`), for so many
        tokens: fp32 from hits, from what crossed the link, and from the host."""
        slots = self.config.top_k + self.config.num_shared_experts
        return 3 * 4 * slots * self.config.hidden_size * tokens

    @property
    def flops_per_token(self) -> int:
        """Of a prompt's token, attention to the past aside: two for each weight it meets."""
        config = self.config
        blocks = config.top_k + config.num_shared_experts if config.is_moe else 1
        kv_width = config.num_kv_heads * config.head_dim
        attention = 2 * config.hidden_size * (config.hidden_size + kv_width)
        expert = 3 * config.hidden_size * config.intermediate_size
        return 2 * config.num_layers * (attention + blocks * expert)
