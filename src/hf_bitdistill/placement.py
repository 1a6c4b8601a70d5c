"""Where the projections of a causal LM are.

This is the only file that knows module names of architectures. Modern architectures say themselves which of their linear
layers are projections: their tensor-parallel plan marks inputs of a block "colwise" and outputs "rowwise". A small table
covers those that carry no plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .config import BitNetConfig
from .direct_reads import find_direct_reads
from .layers.experts import expert_projections, is_fused_experts


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

# What plans of several architectures leave out, without splitting it otherwise; in layers of which they place something.
_PLAN_ADDITIONS_1 = {
    f"{experts}.{name}": role for experts in ("shared_expert", "shared_experts") for name, role in _MLP.items()
}
# Latent attention (the down projections too: they read the whole hidden state, and a norm follows, which takes their scale away), linear
# attention beside a planned one, and the output gates that have the width of the attention.
_ATTENTION = {
    **_SEPARATE_QKV,
    **dict.fromkeys(("qkv_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"), INPUT),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z", "g_proj", "output_gate"), INPUT),
    **dict.fromkeys(("o_proj", "out_proj"), OUTPUT),
}
_PLAN_ADDITIONS = {
    **_PLAN_ADDITIONS_1,
    **{f"{experts}.gate_up_proj": INPUT for experts in ("shared_expert", "shared_experts")},
    **{f"{block}.{name}": role for block in ("self_attn", "linear_attn") for name, role in _ATTENTION.items()},
}

# Linear layers that compute a gate, a few numbers per token: hardly any weights, and an error in one of them
# (how fast a linear attention forgets, which expert is asked) reaches a whole head or expert.
_GATES = (
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


def _plan_roles(model: PreTrainedModel) -> list[tuple[re.Pattern, str]]:
    """The model's tensor-parallel plan as `(pattern of a module name, role)`; only entries inside repeated layers."""
    roles = []
    for pattern, style in (getattr(model, "tp_plan", None) or {}).items():
        role = INPUT if style.startswith("colwise") else OUTPUT if style.startswith("rowwise") else None
        if role is not None and "*" in pattern:
            roles.append((re.compile(re.escape(pattern).replace(r"\*", r"[^.]+") + "$"), role))
    return roles


def _first_role(name: str, suffixes: Mapping[str, str | None]) -> str | None:
    return next((role for suffix, role in suffixes.items() if _ends_with(name, suffix)), None)


def _stack(name: str) -> str:
    """The list of repeated layers that a module is in: its name up to the first number."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0]


def _automatic_roles(
    model: PreTrainedModel, linears: list[str], experts: list[Projection], surgery_version: int
) -> dict[str, str | None]:
    """What the plan or the table says of each linear layer."""
    plan = _plan_roles(model)
    planned = {name: next((role for pattern, role in plan if pattern.match(name)), None) for name in linears}
    if not any(planned.values()):
        table = _PROJECTIONS_WITHOUT_PLAN.get(getattr(model.config, "model_type", ""), {})
        return {name: _first_role(name, table) for name in linears}
    # (Not the layers of an encoder of images or sounds beside the language model.)
    stacks = {_stack(name) for name in [*(n for n, role in planned.items() if role), *(e.name for e in experts)]}
    old = surgery_version == 1
    additions = _PLAN_ADDITIONS_1 if old else _PLAN_ADDITIONS
    return {
        name: (_first_role(name, _PLAN_CORRECTIONS) or role)
        if role
        else (_first_role(name, additions) if old or _stack(name) in stacks else None)
        for name, role in planned.items()
    }


def find_projections(model: PreTrainedModel, config: BitNetConfig) -> list[Projection]:
    """The projections of `model` that a student computes with ternary weights.

    Order of authority: `config.projections`, then the tensor-parallel plan, then a table by `model_type`.

    Raises:
        SurgeryError: nothing could be placed, an entry of `config` matches nothing, names a layer whose weight other code reads, or
            the model keeps experts in fused tensors of an unknown kind. The message names the modules that were looked at and the
            option to set.
    """
    model_type = getattr(model.config, "model_type", type(model).__name__)
    skip, told = config.modules_to_not_convert, config.projections or {}
    replaces = bool(told) and config.surgery_version == 1
    head = model.get_output_embeddings()
    linears = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    fused = fused_experts(model)
    experts = _expert_projections(fused)
    names = [*linears, *(projection.name for projection in experts)]
    _check_entries(model, config, names)

    ordinary = [name for name in linears if not is_named(name, _GATES)]
    automatic = {} if replaces else _automatic_roles(model, ordinary, experts, config.surgery_version)
    automatic |= {} if replaces else {projection.name: projection.role for projection in experts}
    roles, fused_in = {}, {projection.name: projection.fused_in for projection in experts}
    for name in names:
        own = [role for suffix, role in told.items() if _ends_with(name, suffix)]
        role = own[0] if own else automatic.get(name)
        if role and not is_named(name, skip):
            roles[name] = role

    # Experts alone are not what was asked for, unless it was.
    expected = any(not is_named(name, skip) for name in ordinary)
    unknown = not replaces and expected and not any(name in roles for name in linears)
    if unknown or not roles or (config.sub_norm == "output" and OUTPUT not in roles.values()):
        raise SurgeryError(
            f"Cannot tell where the projections of {type(model).__name__} (model_type {model_type!r}) are: it carries no "
            f"usable tensor-parallel plan and is in no table. Linear layers looked at: {summary(ordinary)}. Say it with "
            "BitNetConfig(projections={name suffix: 'input' | 'output', ...})."
        )
    _check_experts(model, fused, skip)
    taken_away = [*(skip or ()), *(suffix for suffix, role in told.items() if role is None)]
    _warn_of_leftovers(model, [name for name in ordinary if name not in roles], taken_away)
    roles = _without_direct_reads(model, roles, told, config.sub_norm)
    return [Projection(name, role, fused_in.get(name)) for name, role in roles.items()]


def _check_entries(model: PreTrainedModel, config: BitNetConfig, names: list[str]) -> None:
    """Refuse names in `config` that match nothing; `names`: of linear layers, experts among them."""
    modules = [*(name for name, _ in model.named_modules()), *names]
    for option in ("modules_to_not_convert", "modules_without_sub_norm"):
        for entry in getattr(config, option) or ():
            if not any(is_named(name, [entry]) for name in modules):
                raise SurgeryError(f"{option}: {entry!r} matches no module of {type(model).__name__}.")
    for suffix in config.projections or ():
        if not any(_ends_with(name, suffix) for name in names):
            raise SurgeryError(f"projections: {suffix!r} matches no linear layer; there are: {summary(names)}.")


def _without_direct_reads(
    model: PreTrainedModel, roles: dict[str, str], told: dict[str, str | None], sub_norm: str
) -> dict[str, str]:
    """`roles` without the layers whose weight other code reads; those that `told` names are refused."""
    reads = find_direct_reads(model, list(roles))
    if not reads:
        return roles
    named = [name for name in reads if _first_role(name, told)]
    what = "; ".join(
        f"{summary(name for name in (named or reads) if reads[name] == method)} (in {method})"
        for method in dict.fromkeys(reads[name] for name in named or reads)
    )
    message = f"{type(model).__name__} multiplies by the weight of these layers itself, past a ternary layer: {what}."
    if named:
        raise SurgeryError(f"{message} They cannot be ternary: take them out of BitNetConfig(projections=...).")
    kept = {name: role for name, role in roles.items() if name not in reads}
    if not kept or (sub_norm == "output" and OUTPUT not in kept.values()):
        raise SurgeryError(
            f"{message} That leaves no output projection, so no place for a SubLN: BitNetConfig(sub_norm='none') converts the rest."
        )
    logger.warning(f"{message} They stay in full precision; list them in modules_to_not_convert to silence this.")
    return kept


def summary(names: Iterable[str]) -> str:
    """Module names with layer numbers folded to `*`, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)) or "none"


def fused_experts(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_fused_experts(module)}


def _expert_projections(fused: Mapping[str, Any]) -> list[Projection]:
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
        and ("expert" in name or "moe" in name)
        and name.rpartition(".")[0] not in known
        and not is_named(name, skip)
    ]
    if foreign:
        raise SurgeryError(
            f"{type(model).__name__} keeps its experts in three-dimensional parameters in a way of its own, which is not "
            f"supported: {summary(foreign)}. To convert the rest and leave these in full precision, add their module to "
            "BitNetConfig(modules_to_not_convert=[...])."
        )


def _warn_of_leftovers(model: PreTrainedModel, leftovers: list[str], taken_away: list[str]) -> None:
    repeated = re.compile(r"\.\d+\.")
    leftovers = [name for name in leftovers if repeated.search(name) and not is_named(name, taken_away)]
    if leftovers:
        logger.warning(
            f"{type(model).__name__}: these linear layers are in no plan and stay in full precision: "
            f"{summary(leftovers)}. Add them with BitNetConfig(projections={{...}}) to convert them, or list them in "
            "modules_to_not_convert to silence this."
        )
