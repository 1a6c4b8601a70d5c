"""Checks of a student's checkpoint before anything of it is used. Every error names the file and the tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from .layers import BitLinear, SubLN, TernaryLinear
from .quantization import PackedWeightError


class CheckpointError(ValueError):
    """A checkpoint file is damaged, incomplete, or does not fit the model."""


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors header says of one tensor."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]


def read_headers(model: PreTrainedModel, files: Iterable[str]) -> dict[str, TensorHeader]:
    """Headers of all tensors in `files`, by the name the tensor has in `model` (not in the file).

    Raises:
        CheckpointError: a file cannot be read as safetensors (truncated, not safetensors).
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state_dict = model.state_dict()
    headers = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise CheckpointError(f"{file}: a BitNet student's checkpoint must be safetensors.")
        try:
            with safe_open(file, framework="pt") as reader:
                for key in reader.keys():  # noqa: SIM118 (no mapping)
                    name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, state_dict)
                    view = reader.get_slice(key)
                    header = TensorHeader(str(file), key, view.get_dtype(), tuple(view.get_shape()))
                    headers[name if name in state_dict else key] = header
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: damaged or not a safetensors file ({error}).") from error
    return headers


def _expected(name: str, module: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Tensor name -> (shape on disk, whether it holds packed codes) for the tensors that only a student has."""
    if isinstance(module, BitLinear):
        return {f"{name}.weight": ((1, *module.weight.shape), False)}
    if isinstance(module, TernaryLinear):
        return {
            f"{name}.weight": (tuple(module.weight.shape), True),
            f"{name}.weight_scale": (tuple(module.weight_scale.shape), False),
        }
    if isinstance(module, SubLN):
        return {f"{name}.weight": (tuple(module.weight.shape), False)}
    return {}


def check_headers(model: PreTrainedModel, headers: dict[str, TensorHeader]) -> None:
    """Compare a student's checkpoint with the (still empty) student that is to receive it.

    Raises:
        CheckpointError: a tensor is missing, or has a wrong shape or kind of dtype.
    """
    files = ", ".join(sorted({header.file for header in headers.values()})) or "the checkpoint"
    for module_name, module in model.named_modules():
        for name, (shape, packed) in _expected(module_name, module).items():
            header = headers.get(name)
            if header is None:
                raise CheckpointError(f"{files}: tensor {name!r} is missing.")
            # ZeRO-3 gathers parameters without their modules' state dict, so a latent weight may have its plain shape.
            shapes = {shape, shape[1:]} if isinstance(module, BitLinear) else {shape}
            if header.shape not in shapes:
                raise CheckpointError(
                    f"{header.file}: tensor {header.key!r} has shape {list(header.shape)}, expected {list(shape)}."
                )
            if (header.dtype == "U8") != packed or not (packed or header.dtype.startswith(("F", "BF"))):
                wanted = "U8 (packed ternary codes)" if packed else "a floating-point type"
                raise CheckpointError(f"{header.file}: tensor {header.key!r} is {header.dtype}, expected {wanted}.")


def check_packed_layers(model: nn.Module, headers: dict[str, TensorHeader] | None = None) -> None:
    """Check the content of every packed layer of a loaded model.

    Raises:
        CheckpointError: code 3, a constant matrix, a scale that is not finite and positive.
    """
    for name, module in model.named_modules():
        if not isinstance(module, TernaryLinear) or module.weight.device.type == "meta":
            continue  # a disk-offloaded layer has nothing in memory to check
        try:
            module.check()
        except PackedWeightError as error:
            tensor, _, problem = str(error).partition(" ")
            header = (headers or {}).get(f"{name}.{tensor}")
            where = f"{header.file}: tensor {header.key!r}" if header else f"tensor '{name}.{tensor}'"
            raise CheckpointError(f"{where} {problem}.") from None


def list_files(checkpoint_files: Iterable[str | Path] | None) -> list[str]:
    """The checkpoint files transformers resolved, as strings (`None`: weights come from a state dict in memory)."""
    return [str(file) for file in checkpoint_files or ()]
