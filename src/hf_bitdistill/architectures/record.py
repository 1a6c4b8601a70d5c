"""What is to be known of an architecture, as data. One record a `model_type`; see [`registry`][hf_bitdistill.architectures.registry]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


# The roles of a projection: it reads the hidden states, or writes what is added to them.
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class NativeDecoder:
    """How the decoder of an architecture differs from Llama's, for the native library.

    A key of the config counts only for the architectures whose modelling file reads it: a `config.json` may hold any number of
    others. What follows therefore says which keys are read.

    Attributes:
        norms: field of [`hf_bitdistill.runtime.families.Layer`] -> module in a layer.
        norm_offset: what is added to the stored weight of every norm of the architecture.
        windows: whether `sliding_window` holds for no layer, all, or those of `layer_types`.
        qk_norm: queries and keys have norms.
        fused: Q, K and V are one projection, gate and up another.
        scaled_embedding: embeddings are multiplied by `sqrt(hidden_size)`.
        attention_scale_key: whose value to the power of -0.5 is the scale of the scores; `None`: that of the width of a head.
        attention_softcap: the scores are capped by `attn_logit_softcapping` (Gemma 3 has the option and ignores it).
        logit_softcap: the logits are capped by `final_logit_softcapping`.
        activation_key: which names the activation of the feed-forward.
        may_be_bidirectional: `use_bidirectional_attention` says whether tokens see those behind them.
        partial_rotary: the rest of a head is left alone where there are fewer frequencies than half a head.
        rotary_layers: `no_rope_layers` says which layers have rotary embeddings.
        mixtures: layers may be mixtures of experts, whose weights are normalised always, or where `norm_topk_prob` says so.
    """

    norms: Mapping[str, str]
    norm_offset: float = 0.0
    windows: Literal["none", "all", "layer_types"] = "none"
    qk_norm: bool = False
    fused: bool = False
    scaled_embedding: bool = False
    attention_scale_key: str | None = None
    attention_softcap: bool = False
    logit_softcap: bool = False
    activation_key: str = "hidden_act"
    may_be_bidirectional: bool = False
    partial_rotary: bool = False
    rotary_layers: bool = False
    mixtures: Literal["", "normalised", "norm_topk_prob"] = ""


@dataclass(frozen=True)
class GgufGraph:
    """A graph of llama.cpp: what `general.architecture` of a GGUF file names.

    Attributes:
        name: in the file.
        model_type: of transformers, that a file becomes when it is imported.
        sub_norm: of the student that it becomes: `"output"` where the graph has norms before the output projections.
        biases: which biases it reads: of `"qkv"`, of `"o"`, of `"mlp"`.
        pairs_rotated: rows of Q and K are stored for a rotation of neighbours, where transformers rotates the halves of a head.
        frequency_factors: it reads a factor for each rotary frequency.
        wide_heads: its heads are together as wide as the model.
        config_keys: options of transformers' config that the sizes and tensors of a file decide.
        in_bitnet_cpp: bitnet.cpp has it too.
    """

    name: str
    model_type: str
    sub_norm: Literal["none", "output"] = "none"
    biases: frozenset[str] = frozenset()
    pairs_rotated: bool = False
    frequency_factors: bool = False
    wide_heads: bool = False
    config_keys: tuple[str, ...] = ()
    in_bitnet_cpp: bool = False


@dataclass(frozen=True)
class Architecture:
    """All that is known of an architecture beside what transformers tells itself.

    Attributes:
        model_type: that of its config.
        projections: end of a projection's name -> its role. Empty: its tensor-parallel plan says where they are.
        own_sub_norms: it has norms of its own before the output projections, which take the place of SubLNs.
        decoder: for the native decoder; `None`: it cannot compute the architecture.
        gguf: the graph of a student without SubLNs; `None`: there is none.
        gguf_with_sub_norms: the graph of one with SubLNs before its output projections.
    """

    model_type: str
    projections: Mapping[str, str] = field(default_factory=dict)
    own_sub_norms: bool = False
    decoder: NativeDecoder | None = None
    gguf: GgufGraph | None = None
    gguf_with_sub_norms: GgufGraph | None = None
