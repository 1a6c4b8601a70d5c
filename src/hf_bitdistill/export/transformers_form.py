"""As which architecture of transformers alone a student can be written, and why some cannot.

transformers' own `bitnet` layers round activations to 8 bits. Packed weights have one scale a matrix there; `AutoBitLinear` also takes weights
that are not packed, as they are, and so any scales. A norm in front they have in all of them or in none (`use_rms_norm`); SubLNs before the
output projections alone are those of `BitNetForCausalLM`, which is a Llama in everything else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import cast

from torch import nn
from transformers import BitNetConfig as BitNetArchitecture
from transformers import PreTrainedConfig, PreTrainedModel

from ..nn import BitLinear, TernaryLinear
from ..quantization.packing import VALUES_PER_BYTE
from ..runtime.families import DecoderSpec, UnsupportedModelError, describe
from ..runtime.students import Student
from .errors import UnsupportedExportError


_ELSEWHERE = "it runs with hf-bitdistill (transformers, or optimum.bitnet)"


@dataclass(frozen=True)
class Form:
    """What a checkpoint for transformers alone consists of.

    Attributes:
        config: of the model, without `quantization_config`.
        rms_norm_eps: of the norm in front of every ternary layer; `None`: the layers have none.
        names: name of a tensor of the student -> its name there, where the two differ.
        factors: module -> what the weight and the bias of the linear layer are multiplied by.
        constants: vectors that are added -> their length, and the value of all their elements.
        small: activations of some layers are too small for float16.
    """

    config: PreTrainedConfig
    rms_norm_eps: float | None = None
    names: dict[str, str] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    constants: dict[str, tuple[int, float]] = field(default_factory=dict)
    small: bool = False


def ternary_layers(model: PreTrainedModel) -> dict[str, BitLinear | TernaryLinear]:
    """The ternary layers of a student by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (BitLinear, TernaryLinear))}


def is_packable(layer: BitLinear | TernaryLinear) -> bool:
    """Whether transformers can hold a ternary layer in 2 bits a weight."""
    return layer.weight_granularity == "tensor" and layer.out_features % VALUES_PER_BYTE == 0


def find_form(student: Student, linear_class: str | None) -> Form:
    """The form for a student.

    Args:
        linear_class: of transformers' layers; `None`: effective weights in ordinary linear layers, which round no activations.

    Raises:
        UnsupportedExportError: there is none; names the layer or option, and what to use instead.
    """
    layers, dense = ternary_layers(student.model), linear_class is None
    if linear_class is not None:
        _check_layers(layers, linear_class)
    norms = [name for name, layer in layers.items() if layer.rms_norm is not None]
    config = copy.deepcopy(student.config)
    options = config.quantization_config
    del config.quantization_config
    config.architectures = [type(student.model).__name__]
    if not norms:
        return Form(config)
    if len(norms) == len(layers) and not dense:
        return Form(config, rms_norm_eps=options.sub_norm_eps)
    return _as_bitnet(student.model, config, norms, options.sub_norm_eps, dense, options.activation_bits is not None)


def _check_layers(layers: dict[str, BitLinear | TernaryLinear], linear_class: str) -> None:
    for name, layer in layers.items():
        if layer.activation_bits is None:
            raise UnsupportedExportError(
                f"{name} leaves its activations in floating point (activation_bits=None), and transformers' own layers round them to 8 bits: "
                f"{_ELSEWHERE}; use --dense."
            )
        if linear_class == "bitlinear" and not is_packable(layer):
            scales, rows = layer.weight_granularity, layer.out_features
            raise UnsupportedExportError(
                f"{name} has a scale a {scales} and {rows} rows, and BitLinear of transformers one a matrix and rows in multiples of "
                f"{VALUES_PER_BYTE}: use linear_class='autobitlinear'."
            )


def _as_bitnet(
    model: PreTrainedModel, config: PreTrainedConfig, norms: list[str], eps: float, dense: bool, rounds: bool
) -> Form:
    """A student with SubLNs before its output projections as `BitNetForCausalLM`.

    Args:
        rounds: the student rounds activations.
    """
    try:
        spec = _describe(model)
    except UnsupportedModelError as error:
        raise _unlike(config, str(error), norms[0], dense, rounds) from None
    outputs = {projection.module for layer in spec.layers for projection in (layer.o, *(m.down for m in layer.mlps))}
    elsewhere = [f"{name} has a SubLN" for name in norms if name not in outputs]
    for reason in (*_differences(model, spec), *elsewhere):
        raise _unlike(config, reason, norms[0], dense, rounds)

    names, factors, small = {}, {}, False
    constants: dict[str, tuple[int, float]] = {}
    biased = {name for name, module in model.named_modules() if getattr(module, "bias", None) is not None}
    attention_bias = any(p.module in biased for layer in spec.layers for p in (*layer.qkv, layer.o))
    for layer in spec.layers:
        (mlp,) = layer.mlps
        # Attention is linear in the values, the product with the gate in its other factor: `source` can take what the norm's input is
        # multiplied by.
        for output, source, norm in (
            (layer.o.module, layer.qkv[2].module, "attn_sub_norm"),
            (mlp.down.module, mlp.gate_up[1].module, "ffn_sub_norm"),
        ):
            name = f"{output.rpartition('.')[0]}.{norm}.weight"
            if output in norms:
                # Their epsilon is that of all other norms there. norm(k x) with epsilon e is norm(x) with e / k^2.
                names[f"{output}.rms_norm.weight"] = name
                factors[source] = (config.rms_norm_eps / eps) ** 0.5
            else:
                # Where x is so small that epsilon is all that is left of the mean square, the norm is a multiplication.
                factors[source] = config.rms_norm_eps**0.5 / _LARGE
                constants[name] = (cast(nn.Linear, model.get_submodule(output)).in_features, _LARGE)
                small = True
        if attention_bias:
            missing = [p.module for p in (*layer.qkv, layer.o) if p.module not in biased]
            linears = {name: cast(nn.Linear, model.get_submodule(name)) for name in missing}
            constants |= {f"{name}.bias": (linear.out_features, 0.0) for name, linear in linears.items()}
    architecture = BitNetArchitecture(
        architectures=["BitNetForCausalLM"],
        attention_bias=attention_bias,
        tie_word_embeddings=spec.head == spec.embedding,
        **{name: copy.deepcopy(getattr(config, name)) for name in _SHARED_KEYS},
    )
    factors = {name: factor for name, factor in factors.items() if factor != 1.0}
    return Form(architecture, names=names, factors=factors, constants=constants, small=small)


def _describe(model: PreTrainedModel) -> DecoderSpec:
    """What a model on the meta device consists of. [`describe`] refuses activations in floats, which the native decoder does not have; a dense copy
    has no others."""
    model = copy.deepcopy(model)
    for layer in ternary_layers(model).values():
        layer.activation_bits = 8
    return describe(model)


# The weight of a norm that does nothing. Exact in every dtype that has a number of this size.
_LARGE = 2.0**40

# Keys of the config that mean the same in a Llama and in BitNetForCausalLM.
_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "attention_dropout",
    "rope_parameters",
    "dtype",
)


def _differences(model: PreTrainedModel, spec: DecoderSpec) -> list[str]:
    """What a decoder has that no Llama with norms before its output projections has, or lacks."""
    found = []
    if spec.head is None:
        found.append("it has a classification head")
    if spec.embedding_scale != 1.0 or spec.attention_softcap or spec.logit_softcap:
        found.append("it scales its embedding, or caps scores or logits")
    for index, layer in enumerate(spec.layers):
        norms = (layer.input_norm, layer.pre_feedforward_norm)
        others = (layer.post_attention_norm, layer.post_feedforward_norm, layer.q_norm, layer.k_norm)
        if any(norm is None or norm.offset for norm in norms) or any(norm is not None for norm in others):
            found.append(f"the norms of layer {index} are others than Llama's")
        if len(layer.qkv) != 3 or any(len(mlp.gate_up) != 2 for mlp in layer.mlps):
            found.append(f"projections of layer {index} are fused")
        if layer.mixture is not None:
            found.append(f"layer {index} is a mixture of experts")
        if layer.window:
            found.append(f"layer {index} sees a window of {layer.window} positions")
        if layer.rope:
            found.append(f"layer {index} has no rotary embedding, or another one")
        projections = [p.module for mlp in layer.mlps for p in (*mlp.gate_up, mlp.down)]
        biased = [name for name in projections if getattr(model.get_submodule(name), "bias", None) is not None]
        found += [f"{name} has a bias" for name in biased]
    if spec.heads * spec.head_dim != spec.hidden_size:
        found.append(f"{spec.heads} heads of {spec.head_dim} are not the hidden size, {spec.hidden_size}")
    return found


def _unlike(config: PreTrainedConfig, reason: str, norm: str, dense: bool, rounds: bool) -> UnsupportedExportError:
    place = (
        "ordinary linear layers have no norm in front"
        if dense
        else "its SubLNs are not in front of all ternary layers"
    )
    also = " (or leave --dense out, if all ternary layers have a SubLN)" if dense and rounds else ""
    # (The layers with norms in front round activations.)
    retrain = "sub_norm='all' or 'none'" if rounds else "sub_norm='none'"
    return UnsupportedExportError(
        f"{config.model_type} with SubLNs (such as that of {norm}) is no model of transformers: {place}, and BitNetForCausalLM, the one "
        f"architecture that has such norms, is another, because {reason}. What a SubLN divides by depends on the token, so it cannot be folded "
        f"into weights: {_ELSEWHERE}; a student made with {retrain} can be exported{also}."
    )
