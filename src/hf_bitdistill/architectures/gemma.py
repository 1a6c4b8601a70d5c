"""Gemma 2 and 3."""

from __future__ import annotations

from dataclasses import replace

from .module_names import SANDWICH_NORMS
from .record import Architecture, NativeDecoder


_GEMMA = NativeDecoder(
    SANDWICH_NORMS,
    norm_offset=1.0,
    windows="layer_types",
    scaled_embedding=True,
    attention_scale_key="query_pre_attn_scalar",
    logit_softcap=True,
    activation_key="hidden_activation",
    may_be_bidirectional=True,
)

RECORDS = (
    Architecture("gemma2", decoder=replace(_GEMMA, attention_softcap=True)),
    Architecture("gemma3_text", decoder=replace(_GEMMA, qk_norm=True)),
)
