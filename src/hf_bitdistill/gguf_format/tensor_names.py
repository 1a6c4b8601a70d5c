"""What GGUF calls the tensors of a decoder (`gguf`'s own tables, by what they are): written by the export, read by the import."""

from __future__ import annotations


EMBEDDING, OUTPUT_NORM, HEAD = "token_embd", "output_norm", "output"
"""Outside of the layers."""

ATTENTION_NORM, MLP_NORM = "attn_norm", "ffn_norm"
Q, K, V, O = "attn_q", "attn_k", "attn_v", "attn_output"  # noqa: E741
Q_NORM, K_NORM = "attn_q_norm", "attn_k_norm"
GATE, UP, DOWN = "ffn_gate", "ffn_up", "ffn_down"
ATTENTION_SUB_NORM, MLP_SUB_NORM = "attn_sub_norm", "ffn_sub_norm"
"""In a layer."""

FREQUENCIES = "rope_freqs.weight"
"""Factors of the rotary embedding, a tensor by its whole name."""


def in_layer(index: int, name: str) -> str:
    """Of a tensor of a layer, without `.weight`, `.bias` or `.scale`."""
    return f"blk.{index}.{name}"
