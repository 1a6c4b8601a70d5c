"""What the decoder of a student consists of, as data: names of tensors, windows, rotary frequencies, scales. How its architecture differs
from Llama is in the record of its `model_type` (`architectures/`).

Whatever is not understood is refused, so that the native decoder never computes something else than transformers would:
an unknown architecture, activation or attention type, frequencies that depend on the length, a projection that is
no linear layer, and any tensor of the model that no part of the description uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures import NATIVE, Architecture, NativeDecoder, find_architecture
from ..nn import BitLinear, Experts, TernaryLinear
from ..nn.experts import Expert
from ..ops import c_header as c


class UnsupportedModelError(ValueError):
    """The native decoder cannot compute this model; transformers can."""


@dataclass(frozen=True)
class Norm:
    """An RMSNorm: name of its weight, epsilon, and what is added to the stored weight."""

    tensor: str
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Projection:
    """A linear layer, ternary or in full precision: its module's name, and a norm in front that belongs to the architecture
    (no SubLN of ours)."""

    module: str
    norm: Norm | None = None
    ternary: bool = True


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies, float32 `[rotary_dim / 2]`, and the factor on cosine and sine."""

    inv_freq: Tensor
    attention_scaling: float


@dataclass(frozen=True)
class Mlp:
    """A feed-forward: of a layer, or of one of its experts."""

    gate_up: tuple[Projection, ...]
    down: Projection


@dataclass(frozen=True)
class Mixture:
    """How the experts of a layer are chosen and weighted; see `bd_mixture`. `router`: a projection in full precision."""

    router: Projection
    experts_per_token: int
    intermediate_size: int
    normalise: bool


@dataclass(frozen=True)
class Layer:
    """One layer; see `bd_layer` in `csrc/bitdistill.h`. `rope`: index or -1. `window`: positions seen, 0: all. `mlps`: one, or the
    experts of `mixture`."""

    input_norm: Norm | None
    post_attention_norm: Norm | None
    pre_feedforward_norm: Norm | None
    post_feedforward_norm: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    qkv: tuple[Projection, ...]
    o: Projection
    mlps: tuple[Mlp, ...]
    mixture: Mixture | None
    rope: int
    window: int

    @property
    def projections(self) -> list[Projection]:
        """All of them but the router."""
        return [*self.qkv, self.o, *(p for mlp in self.mlps for p in (*mlp.gate_up, mlp.down))]


@dataclass(frozen=True)
class DecoderSpec:
    """A whole decoder; see `bd_decoder_config`. `head`: name of the output head's tensor, `None`: hidden states only."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    max_positions: int
    heads: int
    kv_heads: int
    layers: tuple[Layer, ...]
    ropes: tuple[Rope, ...]
    embedding: str
    head: str | None
    final_norm: Norm
    embedding_scale: float
    attention_scale: float
    attention_softcap: float
    logit_softcap: float
    activation: int


_SILU, _GELU, _GELU_TANH, _RELU, _RELU_SQUARED = c.SILU, c.GELU, c.GELU_TANH, c.RELU, c.RELU_SQUARED
_ACTIVATIONS = {
    "silu": _SILU,
    "swish": _SILU,
    "gelu": _GELU,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": _RELU,
    "relu2": _RELU_SQUARED,
}
# Those whose frequencies do not depend on the length of the sequence.
_FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def describe(model: PreTrainedModel) -> DecoderSpec:
    """The description of a student.

    Args:
        model: a causal LM or sequence classifier with ternary layers, on any device, "meta" included.

    Raises:
        UnsupportedModelError: naming what the native decoder cannot compute.
    """
    config = model.config
    architecture = find_architecture(config.model_type)
    family = architecture.decoder
    if family is None:
        raise UnsupportedModelError(f"architecture {config.model_type!r} (there are: {', '.join(sorted(NATIVE))})")
    if getattr(config, "is_heterogeneous", False):
        raise UnsupportedModelError("layers that differ from each other (per_layer_config)")
    # The first is read by transformers' masks, whatever the architecture.
    causal = getattr(config, "is_causal", True)
    if not causal or (family.may_be_bidirectional and getattr(config, "use_bidirectional_attention", False)):
        raise UnsupportedModelError("bidirectional attention")
    body = model.base_model_prefix
    embedding = f"{body}.embed_tokens.weight"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ropes, rope_of = _ropes(model.base_model.get_submodule("rotary_emb"), config, family, head_dim)
    spec = DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        head_dim=head_dim,
        max_positions=config.max_position_embeddings,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        layers=tuple(
            _layer(model, architecture, f"{body}.layers.{index}", rope_of[index], _window(config, family, index))
            for index in range(config.num_hidden_layers)
        ),
        ropes=ropes,
        embedding=embedding,
        head=_head(model, embedding),
        final_norm=_norm(f"{body}.norm", config, family),
        embedding_scale=config.hidden_size**0.5 if family.scaled_embedding else 1.0,
        attention_scale=_attention_width(config, family, head_dim) ** -0.5,
        attention_softcap=_cap(config, "attn_logit_softcapping") if family.attention_softcap else 0.0,
        logit_softcap=_cap(config, "final_logit_softcapping") if family.logit_softcap else 0.0,
        activation=_activation(config, family),
    )
    _check_complete(model, spec)
    return spec


def _norm(module: str, config: PreTrainedConfig, family: NativeDecoder) -> Norm:
    return Norm(f"{module}.weight", config.rms_norm_eps, family.norm_offset)


def _projection(model: PreTrainedModel, name: str, norm: Norm | None = None) -> Projection:
    module = model.get_submodule(name)
    if not isinstance(module, (BitLinear, TernaryLinear)):
        if not isinstance(module, nn.Linear):
            raise UnsupportedModelError(f"{name} is no linear layer ({type(module).__name__})")
        return Projection(name, norm, ternary=False)
    if module.activation_bits is None:
        raise UnsupportedModelError("activations in floating point (activation_bits=None)")
    if norm is not None and module.rms_norm is not None:
        raise UnsupportedModelError(f"{name} has two norms in front")
    return Projection(name, norm)


def _layer(model: PreTrainedModel, architecture: Architecture, name: str, rope: int, window: int) -> Layer:
    family, own = cast(NativeDecoder, architecture.decoder), architecture.own_sub_norms
    config, attention, mlp = model.config, f"{name}.self_attn", f"{name}.mlp"
    norms = {field: _norm(f"{name}.{module}", config, family) for field, module in family.norms.items()}
    qk = [_norm(f"{attention}.{part}_norm", config, family) if family.qk_norm else None for part in "qk"]
    inputs = ["qkv_proj"] if family.fused else ["q_proj", "k_proj", "v_proj"]
    experts = _experts(model, family, mlp)
    sub_norm = _norm(f"{mlp}.ffn_sub_norm", config, family) if own else None
    names = [mlp] if experts is None else [f"{mlp}.experts.{index}" for index in range(len(experts))]
    return Layer(
        input_norm=norms.get("input_norm"),
        post_attention_norm=norms.get("post_attention_norm"),
        pre_feedforward_norm=norms.get("pre_feedforward_norm"),
        post_feedforward_norm=norms.get("post_feedforward_norm"),
        q_norm=qk[0],
        k_norm=qk[1],
        qkv=tuple(_projection(model, f"{attention}.{part}") for part in inputs),
        o=_projection(
            model, f"{attention}.o_proj", _norm(f"{attention}.attn_sub_norm", config, family) if own else None
        ),
        mlps=tuple(_mlp(model, family, name, sub_norm) for name in names),
        mixture=None if experts is None else _mixture(config, family, experts, mlp),
        rope=rope,
        window=window,
    )


def _mlp(model: PreTrainedModel, family: NativeDecoder, name: str, sub_norm: Norm | None) -> Mlp:
    inputs = ["gate_up_proj"] if family.fused else ["gate_proj", "up_proj"]
    return Mlp(
        tuple(_projection(model, f"{name}.{part}") for part in inputs),
        _projection(model, f"{name}.down_proj", sub_norm),
    )


def _experts(model: PreTrainedModel, family: NativeDecoder, mlp: str) -> Experts | None:
    experts = getattr(model.get_submodule(mlp), "experts", None) if family.mixtures else None
    if experts is not None and not isinstance(experts, Experts):
        raise UnsupportedModelError(f"{mlp}.experts in full precision")
    return experts


def _mixture(config: PreTrainedConfig, family: NativeDecoder, experts: Experts, mlp: str) -> Mixture:
    normalise = family.mixtures == "normalised" or bool(config.norm_topk_prob)
    router = Projection(f"{mlp}.gate", ternary=False)
    width = cast(Expert, experts[0]).down_proj.in_features
    return Mixture(router, config.num_experts_per_tok, width, normalise)


def _window(config: PreTrainedConfig, family: NativeDecoder, index: int) -> int:
    # A window W lets a token at p see (p - W, p], in transformers (`sliding_window_overlay`) as in the library.
    if family.windows == "none":
        return 0
    window = config.sliding_window
    kind = config.layer_types[index] if family.windows == "layer_types" else "sliding_attention"
    if kind == "full_attention" or (family.windows == "all" and window is None):
        return 0
    if kind != "sliding_attention" or window is None or window < 1:
        raise UnsupportedModelError(f"attention of type {kind!r} with sliding_window={window} (layer {index})")
    return window


def _attention_width(config: PreTrainedConfig, family: NativeDecoder, head_dim: int) -> float:
    """What scores are divided by, squared."""
    return head_dim if family.attention_scale_key is None else getattr(config, family.attention_scale_key)


def _cap(config: PreTrainedConfig, key: str) -> float:
    """A limit of scores or logits, 0: none."""
    cap = getattr(config, key)
    if cap is None:
        return 0.0
    if not cap > 0:  # transformers divides by it
        raise UnsupportedModelError(f"{key}={cap}")
    return cap


def _ropes(
    module: torch.nn.Module, config: PreTrainedConfig, family: NativeDecoder, head_dim: int
) -> tuple[tuple[Rope, ...], list[int]]:
    """All rotary frequencies, computed by transformers, and which of them each layer has."""
    rotary = type(module)(config)  # the given one may be on the meta device
    layers = range(config.num_hidden_layers)
    types = rotary.rope_type if isinstance(rotary.rope_type, dict) else {"": rotary.rope_type}
    for rope_type in types.values():
        if rope_type not in _FIXED_ROPE_TYPES:
            raise UnsupportedModelError(
                f"rotary embedding of type {rope_type!r} (fixed frequencies only: {', '.join(_FIXED_ROPE_TYPES)})"
            )
    names = sorted(types)
    ropes = []
    for name in names:
        prefix = f"{name}_" if name else ""
        inv_freq = getattr(rotary, f"{prefix}inv_freq").float().contiguous()
        if 2 * inv_freq.numel() > head_dim or (2 * inv_freq.numel() < head_dim and not family.partial_rotary):
            raise UnsupportedModelError(f"{inv_freq.numel()} rotary frequencies for heads of {head_dim}")
        ropes.append(Rope(inv_freq, float(getattr(rotary, f"{prefix}attention_scaling"))))
    if names != [""]:
        return tuple(ropes), [names.index(config.layer_types[index]) for index in layers]
    if not family.rotary_layers:
        return tuple(ropes), [0] * len(layers)
    return tuple(ropes), [0 if config.no_rope_layers[index] else -1 for index in layers]  # 1 means "has one"


def _activation(config: PreTrainedConfig, family: NativeDecoder) -> int:
    name = getattr(config, family.activation_key)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"activation {name!r} (there are: {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS[name]


def _head(model: PreTrainedModel, embedding: str) -> str | None:
    if model.get_output_embeddings() is None:
        return None
    return model.all_tied_weights_keys.get("lm_head.weight", "lm_head.weight")


def _check_complete(model: PreTrainedModel, spec: DecoderSpec) -> None:
    """Every tensor of the model must have a place."""
    projections = [p for layer in spec.layers for p in layer.projections]
    routers = [layer.mixture.router.module for layer in spec.layers if layer.mixture is not None]
    norms = [norm for layer in spec.layers for norm in vars(layer).values() if isinstance(norm, Norm)]
    norms += [projection.norm for projection in projections if projection.norm is not None]
    known = {spec.embedding, spec.head, "lm_head.weight", spec.final_norm.tensor, *(norm.tensor for norm in norms)}
    if spec.head is None:
        known.add("score.weight")  # a classification head, which is not the decoder's
    # (Of tables that are stored in integers.)
    known |= {f"{table}_scale" for table in (spec.embedding, spec.head, "lm_head.weight")}
    owners = {*routers, *(projection.module for projection in projections)}
    for tensor in model.state_dict():
        parent = tensor.rpartition(".")[0]
        if tensor in known or parent in owners or parent.removesuffix(".rms_norm") in owners:
            continue
        raise UnsupportedModelError(f"tensor {tensor!r} has no place in the native decoder")
