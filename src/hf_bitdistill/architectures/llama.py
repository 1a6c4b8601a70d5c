"""Llama, and what differs from it by a few options."""

from __future__ import annotations

from dataclasses import replace

from . import graphs
from .module_names import LLAMA_LAYER, POST_NORMS, PRE_NORMS
from .record import Architecture, NativeDecoder


_LLAMA = NativeDecoder(PRE_NORMS)

RECORDS = (
    Architecture("llama", decoder=_LLAMA, gguf=graphs.LLAMA, gguf_with_sub_norms=graphs.BITNET),
    # (llama.cpp has no window in that graph: the context of a file ends with it.)
    Architecture(
        "mistral", decoder=replace(_LLAMA, windows="all"), gguf=graphs.LLAMA, gguf_with_sub_norms=graphs.BITNET
    ),
    Architecture(
        "qwen2", decoder=replace(_LLAMA, windows="layer_types"), gguf=graphs.QWEN2, gguf_with_sub_norms=graphs.BITNET
    ),
    Architecture(
        "qwen3",
        decoder=replace(_LLAMA, windows="layer_types", qk_norm=True),
        gguf=graphs.QWEN3,
        gguf_with_sub_norms=graphs.BITNET,
    ),
    Architecture("smollm3", decoder=replace(_LLAMA, windows="layer_types", rotary_layers=True)),
    Architecture("phi3", decoder=replace(_LLAMA, windows="all", fused=True, partial_rotary=True)),
    Architecture("olmo2", decoder=replace(_LLAMA, norms=POST_NORMS, qk_norm=True)),
    Architecture("bitnet", LLAMA_LAYER, own_sub_norms=True, decoder=_LLAMA),
    Architecture("diffllama", LLAMA_LAYER),
    Architecture("hunyuan_v1_dense", LLAMA_LAYER),
    Architecture("stablelm", LLAMA_LAYER),
)
