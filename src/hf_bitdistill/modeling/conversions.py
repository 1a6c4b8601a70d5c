"""How weights change between a checkpoint and a student, as conversion operations of transformers.

Where hf_bitdistill was not imported, transformers skips the quantisation method with a warning. A latent weight of the
ordinary shape `[R, C]` would then load as if the student were a full-precision model. In an online checkpoint it is
`[R, 1, C]`, which makes that load fail. Only files have that shape: state dicts in memory are plain, because FSDP copies
between them and the parameters.

The weight of a packed layer is of another form in the files of a checkpoint with `weight_bits=1.6`, too.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    rename_source_key,
)

from .._compat import set_weight_conversions, weight_conversions
from ..config import BitNetConfig
from ..nn import BitLinear, Experts, TernaryLinear
from ..nn.bit_linear import from_checkpoint, to_checkpoint
from .own_mapping import OwnMapping


class _MapWeights(ConversionOps):
    """Applies a function to each tensor; `_owner` tells whose it is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _MapWeights:
        return self  # (transformers copies its converter for each tensor)

    @torch.no_grad()
    def convert(self, input_dict, source_patterns=(), target_patterns=(), **kwargs) -> dict[str, Any]:
        values = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
        model, name = cast(Any, kwargs.get("model")), cast(Any, kwargs.get("full_layer_name"))
        # While saving, transformers before 5.21 gives a tensor's name in the checkpoint, which may be no module's (GPT-NeoX's head).
        try:
            owner = model.get_submodule(name.rpartition(".")[0])
        except AttributeError:
            owner = None
        return {key: self.map(value, owner, name) for key, value in values.items()}

    def map(self, value: Tensor, owner: nn.Module | None, name: str) -> Tensor:
        raise NotImplementedError


class LoadLatentWeight(_MapWeights):
    """A latent weight from its shape in an online checkpoint to its shape in the module; other weights pass."""

    def map(self, value: Tensor, owner: nn.Module | None, name: str) -> Tensor:
        return from_checkpoint(value) if isinstance(owner, BitLinear) else value

    @property
    def reverse_op(self) -> ConversionOps:
        return SaveLatentWeight()


class SaveLatentWeight(_MapWeights):
    """Inverse of [`LoadLatentWeight`]."""

    def map(self, value: Tensor, owner: nn.Module | None, name: str) -> Tensor:
        return to_checkpoint(value) if isinstance(owner, BitLinear) else value

    @property
    def reverse_op(self) -> ConversionOps:
        return LoadLatentWeight()


class LoadDenseWeight(_MapWeights):
    """The weight of a packed layer from five weights a byte to the form that it has in memory; other weights pass.

    Args:
        mapping: reads what is in a file.
    """

    def __init__(self, mapping: OwnMapping | None = None):
        self._mapping = mapping or OwnMapping(dict)

    def map(self, value: Tensor, owner: nn.Module | None, name: str) -> Tensor:
        if not isinstance(owner, TernaryLinear) or not _is_weight(value) or value.ndim == 2:
            return value
        return owner.from_checkpoint(self._mapping.read(name, value))

    @property
    def reverse_op(self) -> ConversionOps:
        return SaveDenseWeight()


class SaveDenseWeight(_MapWeights):
    """Inverse of [`LoadDenseWeight`]."""

    def map(self, value: Tensor, owner: nn.Module | None, name: str) -> Tensor:
        return owner.to_checkpoint(value) if isinstance(owner, TernaryLinear) and _is_weight(value) else value

    @property
    def reverse_op(self) -> ConversionOps:
        return LoadDenseWeight()


def _is_weight(value: Tensor) -> bool:
    return value.dtype == torch.uint8  # (not a packed layer's scale or its bias)


def loading_operation(config: BitNetConfig, mapping: OwnMapping | None = None) -> ConversionOps | None:
    """What the weights of a student's own checkpoint go through while they are loaded."""
    if config.quantization_mode == "online":
        return LoadLatentWeight()
    return None if config.weight_bits == 2 else LoadDenseWeight(mapping)


class TransposeConv1D(_MapWeights):
    """A `Conv1D` weight `[C, R]` of a full-precision checkpoint to the `[R, C]` of a [`BitLinear`]."""

    def map(self, value: Tensor, owner: nn.Module | None, name: str) -> Tensor:
        return value.T.contiguous()


def has_separate_experts(model: nn.Module) -> bool:
    """Whether experts that the architecture keeps fused are separate in `model`.

    They are in its checkpoints too, so none of the architecture's own conversions applies to these: names are those in memory.
    """
    return any(isinstance(module, Experts) for module in model.modules())


def split_by_kind(mapping: list[WeightTransform]) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """An architecture's conversions of names, and of tensors."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    return renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)]


def _are_final_names(model: PreTrainedModel, conversions: list[WeightTransform]) -> bool:
    """Whether `conversions`, applied while loading, leave the names that the tensors of `model` have in memory alone."""
    kinds = split_by_kind(conversions)
    return all(rename_source_key(name, *kinds) == (name, None) for name in model.state_dict())


def _own_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Those of the architecture that `save_pretrained` would revert."""
    conversions = weight_conversions(model)
    if conversions is None:
        # What save_pretrained itself would derive for a model that was not loaded.
        mapping = get_model_conversion_mapping(model, add_legacy=False)
        return [entry for entry in mapping if not isinstance(entry, PrefixChange)]
    # (Without that of an earlier call, or of the quantizer while loading.)
    return [
        entry
        for entry in conversions
        if not any(isinstance(op, (LoadLatentWeight, LoadDenseWeight)) for op in getattr(entry, "operations", ()))
    ]


def convert_when_saved(model: PreTrainedModel) -> None:
    """Make `save_pretrained` write the shapes that a student's files have, whatever state dict it is given (FSDP, DeepSpeed).

    Names are those in memory wherever they can be loaded again, because `Trainer` resumes from a checkpoint's file without any
    conversion: what has another name there would be lost.
    """
    operation = loading_operation(model.config.quantization_config)
    if operation is None:
        return
    conversions = [] if has_separate_experts(model) else _own_conversions(model)
    if _are_final_names(model, conversions):
        conversions = []
    set_weight_conversions(model, [*conversions, WeightConverter(["weight"], "weight", [operation])])
