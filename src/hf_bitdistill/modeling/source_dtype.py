"""The dtype of the full-precision checkpoint that a student is made of, and the one that its packed form is stored in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..config import BitNetConfig
from ..files.tensor_headers import CheckpointError, tensors_of
from ..files.weight_files import EXPLICIT_NAME, local_weight_files
from .preflight import folder_of


_NAMES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNKNOWN = "bfloat16"


def dtype_in_files(files: Iterable[str | Path]) -> str | None:
    """The floating-point dtype of most numbers in some safetensors files (`"bfloat16"`, ...); `None`: there are none.

    Raises:
        CheckpointError: a file cannot be read as safetensors.
    """
    numbers: Counter[str] = Counter()
    for file in files:
        for _, dtype, shape in tensors_of(file):
            if dtype in _NAMES:
                numbers[_NAMES[dtype]] += prod(shape)
    return max(numbers, key=numbers.__getitem__) if numbers else None


def dtype_of_source(model: PreTrainedModel) -> str | None:
    """As [`dtype_in_files`], of the files that a full-precision model in memory was loaded from; of one that was not, its own. A model is
    often loaded in another dtype than it is stored in. Nothing is downloaded.

    Returns:
        `None`: the files are not to be found, and float32 in memory says nothing about them.
    """
    own = str(model.dtype).removeprefix("torch.")
    if not model.name_or_path:
        return own if own in _DTYPES else None
    folder = folder_of(model.config)
    try:
        files = local_weight_files(folder, getattr(model.config, EXPLICIT_NAME, None)) if folder else []
        found = dtype_in_files(files)
    except CheckpointError:
        found = None
    return found or (own if own in ("bfloat16", "float16") else None)


def storage_dtype(dtype: str | torch.dtype | None, config: BitNetConfig) -> torch.dtype:
    """What everything that is not ternary is stored in when a student is packed.

    Args:
        dtype: the wish; `None`: that of the student's source, bfloat16 where it is not known.

    Raises:
        ValueError: it is not one of float32, bfloat16, float16.
    """
    name = dtype if dtype is not None else config.source_dtype or _UNKNOWN
    found = _DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype={name!r} is not supported; choose one of {tuple(_DTYPES)}.")
    return found
