"""Mixtures of experts. Where the experts' own projections are is known without a record: see `nn/experts.py`."""

from __future__ import annotations

from .module_names import LLAMA_LAYER, PRE_NORMS
from .record import INPUT, OUTPUT, Architecture, NativeDecoder


_SHARED_MLP = {"shared_mlp.input_linear": INPUT, "shared_mlp.output_linear": OUTPUT}

RECORDS = (
    Architecture("mixtral", decoder=NativeDecoder(PRE_NORMS, windows="all", mixtures="normalised")),
    Architecture(
        "qwen3_moe", decoder=NativeDecoder(PRE_NORMS, windows="all", qk_norm=True, mixtures="norm_topk_prob")
    ),
    Architecture("afmoe", LLAMA_LAYER),
    Architecture("gpt_oss", LLAMA_LAYER),
    Architecture("granitemoe", LLAMA_LAYER),
    Architecture("granitemoeshared", {**LLAMA_LAYER, **_SHARED_MLP}),
    Architecture("hunyuan_v1_moe", LLAMA_LAYER),
    Architecture("phimoe", LLAMA_LAYER),
)
