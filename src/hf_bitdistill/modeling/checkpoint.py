"""Checks of a student's checkpoint before anything of it is used. Every error names the file and the tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

from .._compat import is_initialized, optional_names
from ..files.tensor_headers import CheckpointError, TensorHeader, tensors_of
from ..nn import BitLinear, SubLN, TernaryLinear
from ..nn.bit_linear import to_checkpoint
from ..ops.dense_storage import unpack_stored
from ..quantization import PackedWeightError, unpack_ternary
from .conversions import has_separate_experts, split_by_kind


# Of ternary weights and 4-bit tables, and of 8-bit tables.
_CODES = {torch.uint8: "U8", torch.int8: "I8"}


def read_headers(model: PreTrainedModel, files: Iterable[str]) -> dict[str, TensorHeader]:
    """Headers of all tensors in `files`, by the name the tensor has in `model` (not in the file).

    Raises:
        CheckpointError: a file cannot be read as safetensors (truncated, not safetensors).
    """
    mapping = [] if has_separate_experts(model) else get_model_conversion_mapping(model)
    kinds = split_by_kind(mapping)
    state_dict = model.state_dict()
    headers = {}
    for file in files:
        for key, dtype, shape in tensors_of(file):
            name, converted = rename_source_key(key, *kinds, model.base_model_prefix, state_dict)
            header = TensorHeader(str(file), key, dtype, shape, converted is not None)
            headers[name if name in state_dict else key] = header
    return headers


def _expected_shape(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    """Shapes that tensor `name` of the student may have on disk."""
    shape = tuple(tensor.shape)
    owner = _owner(model, name)
    if isinstance(owner, BitLinear) and name.endswith(".weight"):
        # Plain where a state dict was written to a file by other means than save_pretrained.
        return tuple(to_checkpoint(tensor).shape), shape
    if isinstance(owner, TernaryLinear) and name.endswith(".weight"):
        return owner.stored_shape, shape
    return (shape,)


def _owner(model: nn.Module, tensor_name: str) -> nn.Module:
    return model.get_submodule(tensor_name.rpartition(".")[0])


def check_headers(model: PreTrainedModel, headers: dict[str, TensorHeader], may_add_head: bool) -> None:
    """Compare a student's checkpoint with the (still empty) student that is to receive it.

    Args:
        may_add_head: whether a tensor outside the base model (a new classification head) may be missing.

    Raises:
        CheckpointError: a tensor is missing, has a wrong shape or kind of dtype, or a SubLN has no place.
    """
    files = ", ".join(sorted({header.file for header in headers.values()}))
    body = f"{model.base_model_prefix}."
    headless = not hasattr(model, model.base_model_prefix)
    head = model.get_output_embeddings()
    optional = re.compile("|".join(optional_names(model)) or "$^")
    state_dict = model.state_dict()
    for name, tensor in state_dict.items():
        header = headers.get(name)
        # A language model's head is never new, only a classifier's.
        outside = not headless and not name.startswith(body) and _owner(model, name) is not head
        if header is None:
            if (may_add_head and outside) or not _tied_with(model, name).isdisjoint(headers) or optional.search(name):
                continue
            raise CheckpointError(f"{files}: tensor {name!r} is missing.")
        if not isinstance(_owner(model, name), (BitLinear, TernaryLinear, SubLN)) and (
            header.converted or (outside and may_add_head)
        ):
            continue  # another shape, or another number of labels: transformers compares these
        shapes = _expected_shape(model, name, tensor)
        if header.shape not in shapes:
            raise CheckpointError(
                f"{header.file}: tensor {header.key!r} has shape {list(header.shape)}, expected {list(shapes[0])}."
            )
        codes = _CODES.get(tensor.dtype)
        if codes is None and not tensor.is_floating_point():
            continue
        if header.dtype != codes and (codes is not None or not header.dtype.startswith(("F", "BF"))):
            wanted = f"{codes} (packed codes)" if codes else "a floating-point type"
            raise CheckpointError(f"{header.file}: tensor {header.key!r} is {header.dtype}, expected {wanted}.")
    for name, header in headers.items():
        if name.endswith(".rms_norm.weight") and name not in state_dict:
            raise CheckpointError(
                f"{header.file}: tensor {header.key!r} is a SubLN, which sub_norm or modules_without_sub_norm in config.json "
                "leaves no place for."
            )


def _tied_with(model: PreTrainedModel, name: str) -> set[str]:
    """Names of the tensors that are the same one as `name`."""
    tied = model.all_tied_weights_keys
    source = tied.get(name, name)
    return {source, *(target for target, other in tied.items() if other == source)} - {name}


def check_projections(model: PreTrainedModel, headers: dict[str, TensorHeader], names: Iterable[str]) -> None:
    """Refuse a full-precision checkpoint that lacks weights of projections: they would start random.

    Args:
        names: modules of projections, fused experts among them.

    Raises:
        CheckpointError: naming the first one.
    """
    for module in names:
        parameters = [f"{module}.{name}" for name, p in model.get_submodule(module).named_parameters() if p.ndim > 1]
        missing = next((name for name in parameters if name not in headers), None)
        if missing is not None:
            files = ", ".join(sorted({header.file for header in headers.values()}))
            raise CheckpointError(f"{files}: tensor {missing!r} is missing.")


def check_loaded(model: PreTrainedModel) -> None:
    """Refuse a student into which a state dict in memory was loaded that lacks some of its own tensors.

    Raises:
        CheckpointError: naming the first one.
    """
    for name, module in model.named_modules():
        if not isinstance(module, (BitLinear, TernaryLinear, SubLN)):
            continue
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in tensors:
            # transformers marks what it loaded, so as not to initialise it.
            if tensor.device.type != "meta" and not is_initialized(tensor):
                raise CheckpointError(f"the given state_dict: tensor '{name}.{key}' is missing.")


def check_packed_layers(model: nn.Module, headers: dict[str, TensorHeader] | None = None) -> None:
    """Check the content of every packed layer of a loaded model.

    Raises:
        CheckpointError: code 3, a constant matrix, a scale that is not finite and positive.
    """
    for name, module in model.named_modules():
        if isinstance(module, TernaryLinear) and module.weight.device.type != "meta":
            check_packed_layer(name, module, headers)  # (a disk-offloaded layer has nothing in memory to check)


def check_packed_layer(name: str, layer: TernaryLinear, headers: dict[str, TensorHeader] | None = None) -> None:
    """Check the content of the packed layer `name`.

    Raises:
        CheckpointError: code 3, a constant matrix, a scale that is not finite and positive.
    """
    try:
        layer.check()
    except PackedWeightError as error:
        tensor, _, problem = str(error).partition(" ")
        header = (headers or {}).get(f"{name}.{tensor}")
        where = f"{header.file}: tensor {header.key!r}" if header else f"tensor '{name}.{tensor}'"
        raise CheckpointError(f"{where} {problem}.") from None


def stored_codes(weight: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The codes of a ternary weight as a file has it, four or five in a byte: int8 `[rows, columns]`; 2 where it stands for no weight.

    Raises:
        PackedWeightError: wrong dtype or shape.
    """
    return unpack_ternary(weight if weight.ndim == 2 else unpack_stored(weight, rows, columns), rows)


def safetensors_files(checkpoint_files: Iterable[str | Path] | None) -> list[str]:
    """The safetensors among the files that transformers resolved (`None`: weights come from a state dict in memory)."""
    return [str(file) for file in checkpoint_files or () if str(file).endswith(".safetensors")]
