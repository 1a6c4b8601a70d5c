"""Names that modules have in several architectures, and what is known of the modules by them."""

from __future__ import annotations

from .record import INPUT, OUTPUT


SEPARATE_QKV = {"q_proj": INPUT, "k_proj": INPUT, "v_proj": INPUT}
GATED_MLP = {"gate_proj": INPUT, "up_proj": INPUT, "down_proj": OUTPUT}
LLAMA_LAYER = {**SEPARATE_QKV, "o_proj": OUTPUT, **GATED_MLP}

# Where the plan of an architecture splits a block's output projection by its rows, only to gather them again.
PLAN_CORRECTIONS = {"linear_attn.out_proj": OUTPUT}

# What plans of several architectures leave out, without splitting it otherwise; in layers of which they place something.
PLAN_ADDITIONS_1 = {
    f"{experts}.{name}": role for experts in ("shared_expert", "shared_experts") for name, role in GATED_MLP.items()
}
# Latent attention (the down projections too: they read the whole hidden state, and a norm follows, which takes their scale away), linear
# attention beside a planned one, and the output gates that have the width of the attention.
_ATTENTION = {
    **SEPARATE_QKV,
    **dict.fromkeys(("qkv_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"), INPUT),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z", "g_proj", "output_gate"), INPUT),
    **dict.fromkeys(("o_proj", "out_proj"), OUTPUT),
}
PLAN_ADDITIONS = {
    **PLAN_ADDITIONS_1,
    **{f"{experts}.gate_up_proj": INPUT for experts in ("shared_expert", "shared_experts")},
    **{f"{block}.{name}": role for block in ("self_attn", "linear_attn") for name, role in _ATTENTION.items()},
}

# Linear layers that compute a gate, a few numbers per token: hardly any weights, and an error in one of them
# (how fast a linear attention forgets, which expert is asked) reaches a whole head or expert.
GATES = (
    "linear_attn.in_proj_a",
    "linear_attn.in_proj_b",
    "linear_attn.in_proj_ba",
    "linear_attn.a_proj",
    "linear_attn.b_proj",
    # Delta attention: the low-rank pairs of its gates, which decide what a head keeps.
    "self_attn.forget_gate",
    "self_attn.b_proj",
    "self_attn.g_a_proj",
    "self_attn.g_b_proj",
    # Which tokens are attended to.
    "self_attn.indexer",
    "self_attn.dt_proj",
    "mlp.router_gate",
    "mlp.router",
    "mlp.gate",
    "mlp.shared_expert_gate",
)

# Field of a layer's description -> module of the layer: before its blocks, behind them, or both.
PRE_NORMS = {"input_norm": "input_layernorm", "pre_feedforward_norm": "post_attention_layernorm"}
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_feedforward_norm": "post_feedforward_layernorm",
}
SANDWICH_NORMS = {
    **POST_NORMS,
    "input_norm": "input_layernorm",
    "pre_feedforward_norm": "pre_feedforward_layernorm",
}
