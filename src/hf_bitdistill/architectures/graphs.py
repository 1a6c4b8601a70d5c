"""The graphs of llama.cpp that compute a student."""

from __future__ import annotations

from .record import GgufGraph


LLAMA = GgufGraph(
    "llama",
    "llama",
    biases=frozenset({"qkv", "o", "mlp"}),
    pairs_rotated=True,
    frequency_factors=True,
    config_keys=("head_dim", "attention_bias", "mlp_bias"),
    in_bitnet_cpp=True,
)
# (Of transformers' models of that name the biases of Q, K and V and the width of a head are no option.)
QWEN2 = GgufGraph("qwen2", "qwen2", biases=frozenset({"qkv"}), wide_heads=True, in_bitnet_cpp=True)
QWEN3 = GgufGraph("qwen3", "qwen3", biases=frozenset({"qkv"}), config_keys=("head_dim", "attention_bias"))
# llama.cpp's: SiLU, and norms before the output projections; not microsoft/bitnet-b1.58-2B-4T, whose files say "bitnet-b1.58".
BITNET = GgufGraph(
    "bitnet",
    "llama",
    sub_norm="output",
    wide_heads=True,
    config_keys=("head_dim", "attention_bias", "mlp_bias"),
    in_bitnet_cpp=True,
)
