"""The replacement of a model's projections by ternary layers, and what of it became ternary."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .._compat import is_convolution
from ..architectures import INPUT, OUTPUT, Architecture, find_architecture
from ..config import QUANT_METHOD, BitNetConfig
from ..nn import BitLinear, Experts, TernaryLinear
from .conversions import convert_when_saved
from .placement import Projection, SurgeryError, find_projections, fused_experts, is_named, summary
from .saving import save_safely
from .source_dtype import dtype_of_source


logger = logging.get_logger(__name__)

# A student of which less is ternary is hardly one.
_EXPECTED_SHARE = 0.9


@dataclass(frozen=True)
class TernaryShare:
    """How much of the linear layers of a student's repeated layers is ternary, in weights; embeddings and head are not counted.

    Attributes:
        ternary: weights that are ternary.
        total: weights of all linear layers, fused experts included.
        left: names of what is in full precision -> its weights.
    """

    ternary: int
    total: int
    left: dict[str, int]

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.ternary / self.total if self.total else 0.0


def ternary_share(model: PreTrainedModel) -> TernaryShare:
    """What of `model`, a student or not, on any device, is ternary."""
    repeated = re.compile(r"\.\d+\.")
    head = model.get_output_embeddings()
    ternary, left = 0, {}
    for name, module in model.named_modules():
        if module is head or not repeated.search(f"{name}."):
            continue
        if isinstance(module, (BitLinear, TernaryLinear)):
            ternary += module.in_features * module.out_features
        elif isinstance(module, (nn.Linear, Conv1D)):
            left[name] = module.weight.numel()
        elif not is_convolution(module):
            # Experts, whoever keeps them.
            fused = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.ndim == 3)
            left |= {name: fused} if fused else {}
    return TernaryShare(ternary, ternary + sum(left.values()), left)


def _report_share(model: PreTrainedModel, config: BitNetConfig) -> None:
    found = ternary_share(model)
    logger.info(f"{type(model).__name__}: {found.share:.1%} of the weights of its linear layers are ternary.")
    taken_away = [*(config.modules_to_not_convert or ())]
    taken_away += [suffix for suffix, role in (config.projections or {}).items() if role is None]
    left = {name: size for name, size in found.left.items() if not is_named(name, taken_away)}
    wanted = found.ternary + sum(left.values())
    if wanted and found.ternary < _EXPECTED_SHARE * wanted:
        logger.warning(
            f"{type(model).__name__}: only {found.share:.1%} of the weights of its linear layers are ternary. In full precision: "
            f"{summary(sorted(left, key=left.__getitem__, reverse=True))}. Add them with BitNetConfig(projections={{name suffix: 'input' | "
            "'output', ...}), or list them in modules_to_not_convert to silence this."
        )


def unfuse_experts(model: PreTrainedModel) -> None:
    """Replace all fused experts of `model` in place by [`Experts`], which compute the same. Works on the meta device too."""
    for name in list(fused_experts(model)):
        # (Nothing else holds it: the copies of one layer are all that is in memory twice.)
        model.set_submodule(name, Experts.from_fused(model.get_submodule(name)))


def _wants_sub_norm(projection: Projection, config: BitNetConfig, architecture: Architecture) -> bool:
    if projection.role == OUTPUT and architecture.own_sub_norms:
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
    architecture = find_architecture(getattr(model.config, "model_type", ""))
    if projections is None:
        projections = find_projections(model, config)
    if any(projection.fused_in for projection in projections):
        # All of them, those that stay in full precision too: one way of naming weights in a checkpoint.
        unfuse_experts(model)
    for projection in projections:
        linear = model.get_submodule(projection.name)
        sub_norm = _wants_sub_norm(projection, config, architecture)
        online = BitLinear.from_linear(linear, config, sub_norm)
        layer: nn.Module = online
        if config.quantization_mode == "offline":
            layer = TernaryLinear(
                online.in_features,
                online.out_features,
                online.bias is not None,
                config,
                sub_norm,
                device=online.weight.device,
                dtype=online.weight.dtype,
            )
        model.set_submodule(projection.name, layer)
    _report_share(model, config)
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
    config.source_dtype = dtype_of_source(model)
    convert_modules(model, config)
    _give_own_config(model)
    model.config.quantization_config = config
    convert_when_saved(model)
    save_safely(model)
    return model


def _give_own_config(model: PreTrainedModel) -> None:
    """Replace the config of `model`, and the references its modules hold to it or to its parts, by a copy."""
    memo: dict[int, Any] = {}
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


__all__ = [
    "INPUT",
    "OUTPUT",
    "Projection",
    "SurgeryError",
    "TernaryShare",
    "apply_bitnet",
    "convert_modules",
    "find_projections",
    "is_named",
    "is_student",
    "student_config",
    "ternary_share",
    "unfuse_experts",
]
