"""Architectures from before Llama, whose configs carry no tensor-parallel plan that places linear layers (those of gptj and codegen do in
newer versions of transformers)."""

from __future__ import annotations

from .module_names import SEPARATE_QKV
from .record import INPUT, OUTPUT, Architecture


_GPT2 = {"attn.c_attn": INPUT, "attn.c_proj": OUTPUT, "mlp.c_fc": INPUT, "mlp.c_proj": OUTPUT}
_GPTJ_MLP = {"mlp.fc_in": INPUT, "mlp.fc_out": OUTPUT}
_OPT = {**SEPARATE_QKV, "out_proj": OUTPUT, "fc1": INPUT, "fc2": OUTPUT}
_BLOOM = {"query_key_value": INPUT, "dense": OUTPUT, "dense_h_to_4h": INPUT, "dense_4h_to_h": OUTPUT}

RECORDS = (
    Architecture("gpt2", _GPT2),
    Architecture("gpt_bigcode", _GPT2),
    Architecture("openai-gpt", _GPT2),
    Architecture("gpt_neo", {**SEPARATE_QKV, "out_proj": OUTPUT, "mlp.c_fc": INPUT, "mlp.c_proj": OUTPUT}),
    Architecture("gptj", {**SEPARATE_QKV, "out_proj": OUTPUT, **_GPTJ_MLP}),
    Architecture("codegen", {"qkv_proj": INPUT, "out_proj": OUTPUT, **_GPTJ_MLP}),
    Architecture("opt", _OPT),
    Architecture("biogpt", _OPT),
    Architecture("xglm", _OPT),
    Architecture("falcon", _BLOOM),
    Architecture("bloom", _BLOOM),
    Architecture("gpt_neox_japanese", _BLOOM),
    Architecture("persimmon", _BLOOM),
    Architecture("mpt", {"attn.Wqkv": INPUT, "attn.out_proj": OUTPUT, "ffn.up_proj": INPUT, "ffn.down_proj": OUTPUT}),
)
