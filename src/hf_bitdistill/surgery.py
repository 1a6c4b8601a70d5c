"""Where the projections of a causal LM are, and their replacement by ternary layers.

This is the only file that knows module names of architectures. Modern architectures say themselves which of their linear
layers are projections: their tensor-parallel plan marks inputs of a block "colwise" and outputs "rowwise". A small table
covers those that carry no plan.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .config import QUANT_METHOD, BitNetConfig
from .conversions import convert_when_saved
from .layers import BitLinear, Experts, TernaryLinear
from .layers.experts import expert_projections, is_fused_experts
from .saving import save_safely


logger = logging.get_logger(__name__)

INPUT, OUTPUT = "input", "output"

_GPT2 = {"attn.c_attn": INPUT, "attn.c_proj": OUTPUT, "mlp.c_fc": INPUT, "mlp.c_proj": OUTPUT}
_GPTJ_MLP = {"mlp.fc_in": INPUT, "mlp.fc_out": OUTPUT}
_SEPARATE_QKV = {"q_proj": INPUT, "k_proj": INPUT, "v_proj": INPUT}
_MLP = {"gate_proj": INPUT, "up_proj": INPUT, "down_proj": OUTPUT}
_LLAMA = {**_SEPARATE_QKV, "o_proj": OUTPUT, **_MLP}
_OPT = {**_SEPARATE_QKV, "out_proj": OUTPUT, "fc1": INPUT, "fc2": OUTPUT}
_BLOOM = {"query_key_value": INPUT, "dense": OUTPUT, "dense_h_to_4h": INPUT, "dense_4h_to_h": OUTPUT}

# model_type -> name suffix of a projection -> its role. Only for architectures whose tensor-parallel plan places no linear layer.
_PROJECTIONS_WITHOUT_PLAN = {
    "bitnet": _LLAMA,
    "diffllama": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "stablelm": _LLAMA,
    "afmoe": _LLAMA,
    "gpt_oss": _LLAMA,
    "granitemoe": _LLAMA,
    "granitemoeshared": {**_LLAMA, "shared_mlp.input_linear": INPUT, "shared_mlp.output_linear": OUTPUT},
    "hunyuan_v1_moe": _LLAMA,
    "phimoe": _LLAMA,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "openai-gpt": _GPT2,
    "gpt_neo": {**_SEPARATE_QKV, "out_proj": OUTPUT, "mlp.c_fc": INPUT, "mlp.c_proj": OUTPUT},
    "gptj": {**_SEPARATE_QKV, "out_proj": OUTPUT, **_GPTJ_MLP},
    "codegen": {"qkv_proj": INPUT, "out_proj": OUTPUT, **_GPTJ_MLP},
    "opt": _OPT,
    "biogpt": _OPT,
    "xglm": _OPT,
    "falcon": _BLOOM,
    "bloom": _BLOOM,
    "gpt_neox_japanese": _BLOOM,
    "persimmon": _BLOOM,
    "mpt": {"attn.Wqkv": INPUT, "attn.out_proj": OUTPUT, "ffn.up_proj": INPUT, "ffn.down_proj": OUTPUT},
}

# Architectures that already normalise the input of their output projections.
_HAS_OWN_SUB_NORM = {"bitnet"}


class SurgeryError(ValueError):
    """The projections of a model could not be placed, or the model cannot be converted."""


@dataclass(frozen=True)
class Projection:
    """A linear layer to convert: its full module name, and its role, `"input"` or `"output"` of its block.

    `fused_in` names the module of fused experts that the layer is a part of: there is no module `name` before [`unfuse_experts`].
    """

    name: str
    role: str
    fused_in: str | None = None


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def is_named(name: str, entries: Iterable[str] | None) -> bool:
    """Whether `name` is named by an entry: the module itself, an ancestor of it, or by the end of either's name."""
    parts = name.split(".")
    ancestors = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(_ends_with(ancestor, entry) for entry in entries or () for ancestor in ancestors)


# Where the plan of an architecture splits a block's output projection by its rows, only to gather them again.
_PLAN_CORRECTIONS = {"linear_attn.out_proj": OUTPUT}

# What plans of several architectures leave out, without splitting it otherwise.
_PLAN_ADDITIONS = {
    f"{experts}.{name}": role for experts in ("shared_expert", "shared_experts") for name, role in _MLP.items()
}

# Linear layers that compute a gate, a few numbers per token: hardly any weights, and an error in one of them
# (how fast a linear attention forgets, which expert is asked) reaches a whole head or expert.
_GATES = (
    "linear_attn.in_proj_a",
    "linear_attn.in_proj_b",
    "linear_attn.in_proj_ba",
    "self_attn.dt_proj",
    "mlp.router_gate",
    "mlp.router",
    "mlp.gate",
    "mlp.shared_expert_gate",
)


def _plan_roles(model: PreTrainedModel) -> list[tuple[re.Pattern, str]]:
    """The model's tensor-parallel plan as `(pattern of a module name, role)`; only entries inside repeated layers."""
    roles = []
    for pattern, style in (getattr(model, "tp_plan", None) or {}).items():
        role = INPUT if style.startswith("colwise") else OUTPUT if style.startswith("rowwise") else None
        if role is not None and "*" in pattern:
            roles.append((re.compile(re.escape(pattern).replace(r"\*", r"[^.]+") + "$"), role))
    return roles


def _role_of(name: str, suffixes: dict[str, str] | None, plan: list[tuple[re.Pattern, str]]) -> str | None:
    if suffixes is not None:
        return next((role for suffix, role in suffixes.items() if _ends_with(name, suffix)), None)
    role = next((role for pattern, role in plan if pattern.match(name)), None)
    other = _PLAN_CORRECTIONS if role else _PLAN_ADDITIONS
    return next((right for suffix, right in other.items() if _ends_with(name, suffix)), role)


def find_projections(model: PreTrainedModel, config: BitNetConfig) -> list[Projection]:
    """The projections of `model` that a student computes with ternary weights.

    Order of authority: `config.projections`, then the tensor-parallel plan, then a table by `model_type`.

    Raises:
        SurgeryError: nothing could be placed, an entry of `config` matches nothing, or the model keeps experts in fused tensors
            of an unknown kind. The message names the modules that were looked at and the option to set.
    """
    model_type = getattr(model.config, "model_type", type(model).__name__)
    skip = config.modules_to_not_convert
    head = model.get_output_embeddings()
    linears = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    if not config.projections:
        linears = [name for name in linears if not is_named(name, _GATES)]
    plan = _plan_roles(model)
    planned = any(pattern.match(name) for pattern, _ in plan for name in linears)
    suffixes = config.projections or (None if planned else _PROJECTIONS_WITHOUT_PLAN.get(model_type, {}))
    fused = _fused_experts(model)
    experts = _expert_projections(fused)
    names = [*linears, *(projection.name for projection in experts)]
    modules = [*(name for name, _ in model.named_modules()), *names]
    for option in ("modules_to_not_convert", "modules_without_sub_norm"):
        for entry in getattr(config, option) or ():
            if not any(is_named(name, [entry]) for name in modules):
                raise SurgeryError(f"{option}: {entry!r} matches no module of {type(model).__name__}.")
    for suffix in config.projections or ():
        if not any(_ends_with(name, suffix) for name in names):
            raise SurgeryError(f"projections: {suffix!r} matches no linear layer; there are: {_summary(names)}.")

    candidates = {name: _role_of(name, suffixes, plan) for name in linears}
    placed = [Projection(name, role) for name, role in candidates.items() if role and not is_named(name, skip)]
    # Experts alone are not what was asked for, unless it was.
    unknown = not placed and not config.projections and any(not is_named(name, skip) for name in candidates)
    for projection in experts:
        role = _role_of(projection.name, config.projections, plan) if config.projections else projection.role
        if role and not is_named(projection.name, skip):
            placed.append(replace(projection, role=role))
    if (
        unknown
        or not placed
        or (config.sub_norm == "output" and all(projection.role == INPUT for projection in placed))
    ):
        raise SurgeryError(
            f"Cannot tell where the projections of {type(model).__name__} (model_type {model_type!r}) are: it carries no "
            f"usable tensor-parallel plan and is in no table. Linear layers looked at: {_summary(linears)}. Say it with "
            "BitNetConfig(projections={name suffix: 'input' | 'output', ...})."
        )
    _check_experts(model, fused, skip)
    _warn_of_leftovers(model, candidates, skip)
    return placed


def _summary(names: Iterable[str]) -> str:
    """Module names with layer numbers folded to `*`, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)) or "none"


def _fused_experts(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_fused_experts(module)}


def _expert_projections(fused: dict[str, nn.Module]) -> list[Projection]:
    """The linear layers that [`unfuse_experts`] will make."""
    return [
        Projection(f"{name}.{index}.{part}", _MLP[part], name)
        for name, module in fused.items()
        for index in range(module.num_experts)
        for part in expert_projections(module)
    ]


def _check_experts(model: PreTrainedModel, known: Iterable[str], skip: list[str] | None) -> None:
    foreign = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3
        and "expert" in name
        and name.rpartition(".")[0] not in known
        and not is_named(name, skip)
    ]
    if foreign:
        raise SurgeryError(
            f"{type(model).__name__} keeps its experts in three-dimensional parameters in a way of its own, which is not "
            f"supported: {_summary(foreign)}. To convert the rest and leave these in full precision, add their module to "
            "BitNetConfig(modules_to_not_convert=[...])."
        )


def unfuse_experts(model: PreTrainedModel) -> None:
    """Replace all fused experts of `model` in place by [`Experts`], which compute the same. Works on the meta device too."""
    for name in list(_fused_experts(model)):
        # (Nothing else holds it: the copies of one layer are all that is in memory twice.)
        model.set_submodule(name, Experts.from_fused(model.get_submodule(name)))


def _warn_of_leftovers(model: PreTrainedModel, candidates: dict[str, str | None], skip: list[str] | None) -> None:
    repeated = re.compile(r"\.\d+\.")
    leftovers = [name for name, role in candidates.items() if not role and repeated.search(name)]
    leftovers = [name for name in leftovers if not is_named(name, skip)]
    if leftovers:
        logger.warning(
            f"{type(model).__name__}: these linear layers are in no plan and stay in full precision: "
            f"{_summary(leftovers)}. List them in BitNetConfig(projections=...) to convert them, or in "
            "modules_to_not_convert to silence this."
        )


def _wants_sub_norm(projection: Projection, config: BitNetConfig, model_type: str) -> bool:
    if projection.role == OUTPUT and model_type in _HAS_OWN_SUB_NORM:
        return False
    if is_named(projection.name, config.modules_without_sub_norm):
        return False
    return config.sub_norm == "all" or (config.sub_norm == "output" and projection.role == OUTPUT)


def convert_modules(
    model: PreTrainedModel, config: BitNetConfig, projections: list[Projection] | None = None
) -> list[str]:
    """Replace the projections of `model` (default: those of [`find_projections`]) in place by the layers of
    `config.quantization_mode`.

    Works on the meta device (the loading path) as well as on real weights, but a [`TernaryLinear`] starts empty: real
    weights become offline through [`pack`].

    Returns:
        The names of the converted modules.
    """
    if any(isinstance(module, (BitLinear, TernaryLinear)) for module in model.modules()):
        raise SurgeryError(f"{type(model).__name__} is already a BitNet student.")
    model_type = getattr(model.config, "model_type", "")
    if projections is None:
        projections = find_projections(model, config)
    if any(projection.fused_in for projection in projections):
        # All of them, those that stay in full precision too: one way of naming weights in a checkpoint.
        unfuse_experts(model)
    for projection in projections:
        linear = model.get_submodule(projection.name)
        sub_norm = _wants_sub_norm(projection, config, model_type)
        layer: nn.Module = BitLinear.from_linear(linear, config, sub_norm)
        if config.quantization_mode == "offline":
            layer = TernaryLinear(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                config,
                sub_norm,
                device=layer.weight.device,
                dtype=layer.weight.dtype,
            )
        model.set_submodule(projection.name, layer)
    return [projection.name for projection in projections]


def apply_bitnet(model: PreTrainedModel, config: BitNetConfig | None = None) -> PreTrainedModel:
    """Turn a full-precision model in memory into a trainable ternary student, in place.

    The new layers hold the very weight tensors of the old ones (`Conv1D` weights are transposed copies, those of fused experts
    copies of their parts).

    Args:
        model: any transformers model whose projections can be placed.
        config: `quantization_mode` must be `"online"`; default `BitNetConfig()`.

    Returns:
        `model`. Its config is replaced by a copy that carries `quantization_config`, so that `save_pretrained` writes an
        online checkpoint, while a teacher that was built from the same config object stays a full-precision model.

    Raises:
        SurgeryError: the model is quantised already, or its projections cannot be placed.
        ValueError: `config` asks for offline mode.
    """
    config = copy.deepcopy(config) if config is not None else BitNetConfig()
    if config.quantization_mode != "online":
        raise ValueError(
            "apply_bitnet makes an online (trainable) student; call pack(model) on it for an offline one."
        )
    if getattr(model.config, "quantization_config", None) is not None or getattr(model, "is_quantized", False):
        raise SurgeryError(f"{type(model).__name__} is already quantised; load its full-precision checkpoint instead.")
    convert_modules(model, config)
    _give_own_config(model)
    convert_when_saved(model)
    save_safely(model)
    model.config.quantization_config = config
    return model


def _give_own_config(model: PreTrainedModel) -> None:
    """Replace the config of `model`, and the references its modules hold to it or to its parts, by a copy."""
    memo: dict[int, object] = {}
    old = model.config
    copy.deepcopy(old, memo)  # memo: id of each part -> its copy
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and id(config) in memo:
            module.config = memo[id(config)]


def is_student(model: nn.Module) -> bool:
    """Whether `model` holds layers of a BitNet student, online or offline."""
    return any(isinstance(module, (BitLinear, TernaryLinear)) for module in model.modules())


def student_config(model: PreTrainedModel) -> BitNetConfig:
    """The [`BitNetConfig`] of a student.

    Raises:
        SurgeryError: `model` is not a BitNet student.
    """
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, dict) and config.get("quant_method") == QUANT_METHOD:
        config = BitNetConfig.from_dict(config)
    if not isinstance(config, BitNetConfig) or not is_student(model):
        raise SurgeryError(f"{type(model).__name__} is not a BitNet student (see apply_bitnet).")
    return config
