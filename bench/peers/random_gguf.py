"""Random Q4_0 weights in the shape of XVERSE-MoE-A4.2B as a GGUF file.

llama.cpp's architecture `bailingmoe` with normalised top-k weights is this model exactly. All big
matrices are Q4_0, the embedding and the head too; norms and routers are F32. Weights have mean 0
and the deviation 1 / sqrt(columns), the embedding 1, as in our synthetic stores: tokens spread
over the experts, and stay apart through any number of layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from xverse_runtime.store.synthetic import A4_2B, DEVIATION, SyntheticSource

GROUP, BLOCK_BYTES = 32, 18  # a block: the fp16 scale, then 16 bytes of two weights each
HIDDEN, WIDTH, VOCAB = A4_2B["hidden_size"], A4_2B["intermediate_size"], A4_2B["vocab_size"]
HEADS, EXPERTS = A4_2B["num_attention_heads"], A4_2B["num_experts"]
SHARED = A4_2B["num_shared_experts"] * WIDTH
FIRST_CODE_POINT = 0x10000


def write_model(path: Path, layers: int = A4_2B["num_hidden_layers"]) -> Path:
    """Write the model unless it is there: 0.51 GB a layer, and 0.29 GB.

    Holds one tensor in memory at a time, 0.5 GB with everything that making it needs.

    Args:
        path: the file to write; its folder is made.
        layers: how many; 28 is the true number.

    Returns:
        ``path``.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    shapes = tensor_shapes(layers)
    writer = gguf.GGUFWriter(partial, "bailingmoe")
    _add_metadata(writer, layers)
    for name, shape in shapes.items():
        if is_float(name):
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            stored = (*shape[:-1], shape[-1] // GROUP * BLOCK_BYTES)
            form = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    source = SyntheticSource.seeded(0)
    for name, shape in shapes.items():
        writer.write_tensor_data(_random_tensor(name, shape, source))
    writer.close()
    return partial.replace(path)


def tensor_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name, in file order; rows are outputs, columns inputs: [rows, columns]."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (HIDDEN, HIDDEN),
                "attn_v": (HIDDEN, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate_inp": (EXPERTS, HIDDEN),
                "ffn_gate_exps": (EXPERTS, WIDTH, HIDDEN),
                "ffn_up_exps": (EXPERTS, WIDTH, HIDDEN),
                "ffn_down_exps": (EXPERTS, HIDDEN, WIDTH),
                "ffn_gate_shexp": (SHARED, HIDDEN),
                "ffn_up_shexp": (SHARED, HIDDEN),
                "ffn_down_shexp": (HIDDEN, SHARED),
            }.items()
        }
    return shapes | {"output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN)}


def is_float(name: str) -> bool:
    """Whether a tensor is F32: norms and routers."""
    return name.endswith(("norm.weight", "ffn_gate_inp.weight"))


def _random_tensor(name: str, shape: tuple[int, ...], source: SyntheticSource) -> Any:
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    deviation = 1.0 if name == "token_embd.weight" else shape[-1] ** -0.5
    if is_float(name):
        return (source.normal(*shape) * deviation).numpy()
    data = source.bits(int(np.prod(shape)) // GROUP * BLOCK_BYTES)
    blocks = data.view(-1, BLOCK_BYTES)
    low, high = np.array(deviation / DEVIATION[4], "<f2").tobytes()
    blocks[:, 0] = low
    blocks[:, 1] = torch.bitwise_or(blocks[:, 1] & 0x80, high)  # the random sign stays
    return data.numpy()


def _add_metadata(writer: gguf.GGUFWriter, layers: int) -> None:
    writer.add_name("XVERSE-MoE-A4.2B, random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_block_count(layers)
    writer.add_context_length(A4_2B["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(A4_2B["rms_norm_eps"])
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(A4_2B["rope_theta"])
    writer.add_vocab_size(VOCAB)
    writer.add_leading_dense_block_count(0)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(A4_2B["moe_top_k"])
    writer.add_expert_shared_count(A4_2B["num_shared_experts"])
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_weights_norm(True)
    _add_vocabulary(writer)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A code point for every id, so that a text can hold any sequence of tokens."""
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    special_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    first = len(special) + len(special_bytes)
    others = [chr(FIRST_CODE_POINT + token) for token in range(first, VOCAB)]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + special_bytes + others)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.CONTROL]
        + [kinds.BYTE] * len(special_bytes)
        + [kinds.NORMAL] * len(others)
    )
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(A4_2B["pad_token_id"])
    writer.add_bos_token_id(A4_2B["bos_token_id"])
    writer.add_eos_token_id(A4_2B["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
