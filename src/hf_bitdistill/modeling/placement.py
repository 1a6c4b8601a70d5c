"""Where the projections of a causal LM are, and why.

Modern architectures say themselves which of their linear layers are projections: their tensor-parallel plan marks inputs of a block
"colwise" and outputs "rowwise". A record (`architectures/`) covers those that carry no plan. What decides about a layer is the first of
[`RULES`][hf_bitdistill.modeling.placement.RULES] that knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..architectures import INPUT, OUTPUT, find_architecture
from ..architectures.module_names import GATED_MLP, GATES, PLAN_ADDITIONS, PLAN_ADDITIONS_1, PLAN_CORRECTIONS
from ..config import BitNetConfig
from ..nn.experts import expert_projections, is_fused_experts
from .direct_reads import find_direct_reads


logger = logging.get_logger(__name__)


class SurgeryError(ValueError):
    """The projections of a model could not be placed, or the model cannot be converted."""


@dataclass(frozen=True)
class Projection:
    """A linear layer to convert: its full module name, and its role, `"input"` or `"output"` of its block.

    `fused_in` names the module of fused experts that the layer is a part of: there is no module `name` before [`unfuse_experts`].
    `reason` says for people what gave it the role.
    """

    name: str
    role: str
    fused_in: str | None = None
    reason: str = field(default="", compare=False)


@dataclass(frozen=True)
class Decision:
    """What becomes of a linear layer.

    Attributes:
        role: `"input"`, `"output"`, or `None`: it stays in full precision.
        reason: why, for people.
        expected: whether somebody decided so; otherwise the layer was overlooked.
    """

    role: str | None
    reason: str
    expected: bool = True


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def is_named(name: str, entries: Iterable[str] | None) -> bool:
    """Whether `name` is named by an entry: the module itself, an ancestor of it, or by the end of either's name."""
    parts = name.split(".")
    ancestors = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(_ends_with(ancestor, entry) for entry in entries or () for ancestor in ancestors)


def _named_by(name: str, suffixes: Mapping[str, str | None]) -> str | None:
    """The first of `suffixes` that `name` ends with."""
    return next((suffix for suffix in suffixes if _ends_with(name, suffix)), None)


def _stack(name: str) -> str:
    """The list of repeated layers that a module is in: its name up to the first number."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[0]


class _Model:
    """What the rules look at.

    Args:
        model: before surgery.
        config: what its user says.

    Attributes:
        linears: names of all linear layers but the head. fused: modules of fused experts, by name. experts: the layers they will become.
    """

    def __init__(self, model: PreTrainedModel, config: BitNetConfig):
        self.config = config
        self.told: Mapping[str, str | None] = config.projections or {}
        self.is_old = config.surgery_version == 1
        self.record = find_architecture(getattr(model.config, "model_type", ""))
        head = model.get_output_embeddings()
        self.linears = [
            name for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head
        ]
        self.fused = fused_experts(model)
        self.experts = {projection.name: projection for projection in _expert_projections(self.fused)}
        self.names = [*self.linears, *self.experts]
        # Those that nobody would miss are not asked for, and do not tell whether a plan is one.
        self.ordinary = [name for name in self.linears if not is_named(name, GATES)]
        self._plan = getattr(model, "tp_plan", None) or {}

    @cached_property
    def planned(self) -> dict[str, str]:
        """Ordinary linear layers that the tensor-parallel plan places -> how it splits them; entries inside repeated layers only."""
        styles = [
            (re.compile(re.escape(pattern).replace(r"\*", r"[^.]+") + "$"), style)
            for pattern, style in self._plan.items()
            if "*" in pattern and style.startswith(("colwise", "rowwise"))
        ]
        found = {name: next((s for pattern, s in styles if pattern.match(name)), None) for name in self.ordinary}
        return {name: style for name, style in found.items() if style is not None}

    @cached_property
    def stacks(self) -> set[str]:
        """Lists of layers of which something is placed (not those of an encoder of images or sounds beside the language model)."""
        return {_stack(name) for name in (*self.planned, *self.experts)}


def _taken_out(model: _Model, name: str) -> Decision | None:
    if is_named(name, model.config.modules_to_not_convert):
        return Decision(None, "modules_to_not_convert names it")
    return None


def _told(model: _Model, name: str) -> Decision | None:
    suffix = _named_by(name, model.told)
    return None if suffix is None else Decision(model.told[suffix], f"BitNetConfig(projections={{{suffix!r}: ...}})")


def _gate(model: _Model, name: str) -> Decision | None:
    if name not in model.experts and is_named(name, GATES):
        return Decision(None, "a gate: hardly any weights, and an error in one reaches a whole head or expert")
    return None


def _told_others(model: _Model, name: str) -> Decision | None:
    # In the first version what a user named took the place of everything else.
    if model.is_old and model.told:
        return Decision(None, "projections names others, with surgery_version=1", expected=False)
    return None


def _part_of_an_expert(model: _Model, name: str) -> Decision | None:
    expert = model.experts.get(name)
    return None if expert is None else Decision(expert.role, "a part of an expert")


def _planned(model: _Model, name: str) -> Decision | None:
    style = model.planned.get(name)
    if style is None:
        return None
    if (suffix := _named_by(name, PLAN_CORRECTIONS)) is not None:
        return Decision(PLAN_CORRECTIONS[suffix], f"the end of a block, though its tensor-parallel plan says {style}")
    role = INPUT if style.startswith("colwise") else OUTPUT
    return Decision(role, f"{style} in its tensor-parallel plan")


def _beside_the_planned(model: _Model, name: str) -> Decision | None:
    additions = PLAN_ADDITIONS_1 if model.is_old else PLAN_ADDITIONS
    suffix = _named_by(name, additions)
    if suffix is None or not model.planned or not (model.is_old or _stack(name) in model.stacks):
        return None
    return Decision(additions[suffix], "a projection that its tensor-parallel plan leaves out")


def _recorded(model: _Model, name: str) -> Decision | None:
    suffix = None if model.planned else _named_by(name, model.record.projections)
    if suffix is None:
        return None
    return Decision(model.record.projections[suffix], f"the record of {model.record.model_type!r}")


# In the order of authority: the first that knows a layer decides.
RULES: tuple[Callable[[_Model, str], Decision | None], ...] = (
    _taken_out,
    _told,
    _gate,
    _told_others,
    _part_of_an_expert,
    _planned,
    _beside_the_planned,
    _recorded,
)
_UNKNOWN = Decision(None, "in no plan and no record", expected=False)


def _decide(model: _Model) -> dict[str, Decision]:
    return {
        name: next((found for rule in RULES if (found := rule(model, name)) is not None), _UNKNOWN)
        for name in model.names
    }


def find_projections(model: PreTrainedModel, config: BitNetConfig) -> list[Projection]:
    """The projections of `model` that a student computes with ternary weights.

    Order of authority: `config`, then the tensor-parallel plan, then the record of the `model_type`. What stays in full precision is logged
    with the reason.

    Raises:
        SurgeryError: nothing could be placed, an entry of `config` matches nothing, names a layer whose weight other code reads, or
            the model keeps experts in fused tensors of an unknown kind. The message names the modules that were looked at and the
            option to set.
    """
    facts = _Model(model, config)
    _check_entries(model, config, facts.names)
    decisions = _decide(facts)
    _check_placed(model, facts, decisions)
    _check_experts(model, facts.fused, config.modules_to_not_convert)
    _warn_of_leftovers(model, {name: decisions[name] for name in facts.linears})
    decisions = _without_direct_reads(model, decisions, facts.told, config.sub_norm)
    if kept := {name: decision for name, decision in decisions.items() if decision.role is None}:
        logger.info(f"{type(model).__name__}: in full precision: {explain(kept)}.")
    return [
        Projection(
            name, decision.role, facts.experts[name].fused_in if name in facts.experts else None, decision.reason
        )
        for name, decision in decisions.items()
        if decision.role is not None
    ]


def explain(decisions: Mapping[str, Decision]) -> str:
    """Names of layers by the reasons for what becomes of them, for messages."""
    reasons = dict.fromkeys(decision.reason for decision in decisions.values())
    return "; ".join(
        f"{summary(name for name, decision in decisions.items() if decision.reason == reason)} ({reason})"
        for reason in reasons
    )


def _check_placed(model: PreTrainedModel, facts: _Model, decisions: dict[str, Decision]) -> None:
    """Refuse a model of which nothing was placed, or nothing but experts: they alone are not what was asked for, unless it was."""
    placed = {name: decision.role for name, decision in decisions.items() if decision.role is not None}
    wanted = any(not is_named(name, facts.config.modules_to_not_convert) for name in facts.ordinary)
    replaces = facts.is_old and bool(facts.told)
    unknown = not replaces and wanted and not any(name in placed for name in facts.linears)
    if unknown or not placed or (facts.config.sub_norm == "output" and OUTPUT not in placed.values()):
        looked_at = explain({name: decisions[name] for name in facts.ordinary}) or "none"
        model_type = getattr(model.config, "model_type", type(model).__name__)
        raise SurgeryError(
            f"Cannot tell where the projections of {type(model).__name__} (model_type {model_type!r}) are: it carries no "
            f"usable tensor-parallel plan and has no record. Linear layers looked at: {looked_at}. Say it with "
            "BitNetConfig(projections={name suffix: 'input' | 'output', ...})."
        )


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
    model: PreTrainedModel, decisions: dict[str, Decision], told: Mapping[str, str | None], sub_norm: str
) -> dict[str, Decision]:
    """`decisions`, with layers in full precision whose weight other code reads; those that `told` names are refused."""
    reads = find_direct_reads(model, [name for name, decision in decisions.items() if decision.role is not None])
    if not reads:
        return decisions
    named = [name for name in reads if _named_by(name, told) is not None]
    what = "; ".join(
        f"{summary(name for name in (named or reads) if reads[name] == method)} (in {method})"
        for method in dict.fromkeys(reads[name] for name in named or reads)
    )
    message = f"{type(model).__name__} multiplies by the weight of these layers itself, past a ternary layer: {what}."
    if named:
        raise SurgeryError(f"{message} They cannot be ternary: take them out of BitNetConfig(projections=...).")
    kept = {name: Decision(None, f"{method} multiplies by its weight itself") for name, method in reads.items()}
    left = {**decisions, **kept}
    roles = {decision.role for decision in left.values()} - {None}
    if not roles or (sub_norm == "output" and OUTPUT not in roles):
        raise SurgeryError(
            f"{message} That leaves no output projection, so no place for a SubLN: BitNetConfig(sub_norm='none') converts the rest."
        )
    logger.warning(f"{message} They stay in full precision; list them in modules_to_not_convert to silence this.")
    return left


def summary(names: Iterable[str]) -> str:
    """Module names with layer numbers folded to `*`, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)) or "none"


def fused_experts(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_fused_experts(module)}


def _expert_projections(fused: Mapping[str, Any]) -> list[Projection]:
    """The linear layers that [`unfuse_experts`] will make."""
    return [
        Projection(f"{name}.{index}.{part}", GATED_MLP[part], name)
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


def _warn_of_leftovers(model: PreTrainedModel, decisions: dict[str, Decision]) -> None:
    repeated = re.compile(r"\.\d+\.")
    overlooked = {
        name: decision for name, decision in decisions.items() if repeated.search(name) and not decision.expected
    }
    if overlooked:
        logger.warning(
            f"{type(model).__name__}: these linear layers stay in full precision: {explain(overlooked)}. Add them with "
            "BitNetConfig(projections={...}) to convert them, or list them in modules_to_not_convert to silence this."
        )
