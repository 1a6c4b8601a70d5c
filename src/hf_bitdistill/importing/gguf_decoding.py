"""Which tensor types of GGUF are read: the ternary ones as codes and scales, all others that the package `gguf` knows as floats."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ..files.tensor_headers import CheckpointError
from ..gguf_format import Q2_0, Q2_0_128, TQ1_0, TQ2_0, BlockFormat, TensorType
from .gguf_reading import GgufFile, GgufTensor


_TERNARY = {TQ1_0.number: TQ1_0, TQ2_0.number: TQ2_0}
_Q2_0 = (Q2_0, Q2_0_128)
# Of a fork of llama.cpp (PrismML's): their weights are stored in a rotated basis, which the files declare elsewhere.
_NAMES = {Q2_0.number: "Q2_0", 36: "I2_S of bitnet.cpp", 142: "PQ2_0 of PrismML", 143: "PTQ1_0 of PrismML"}


def type_name(number: int) -> str:
    """What a type is called, for people."""
    try:
        name = GGMLQuantizationType(number).name
    except ValueError:
        name = _NAMES.get(number, "unknown")
    return f"{number} ({name})"


def tensor_formats(file: GgufFile) -> dict[str, TensorType]:
    """How each tensor of a file is stored: ternary ones in a [`BlockFormat`], others are read as floats.

    Raises:
        CheckpointError: a type that is not known here, a shape that its blocks do not fit, fewer bytes than it needs, or a Q2_0 tensor of
            which nothing tells whether its blocks have 64 or 128 weights; names the tensor.
    """
    formats: dict[str, TensorType] = {}
    undecided: list[GgufTensor] = []
    for name, tensor in file.tensors.items():
        if tensor.number != Q2_0.number:
            formats[name] = _format(file, tensor)
            continue
        fitting = [block for block in _Q2_0 if _fits(file, tensor, block)]
        if len(fitting) == 1:
            formats[name] = fitting[0]
        elif fitting:
            undecided.append(tensor)
        else:
            raise CheckpointError(
                f"{file.place(name)} of type {type_name(tensor.number)} has {tensor.room} bytes for its shape {list(tensor.shape)}, which "
                "fits blocks neither of 64 nor of 128 weights: the file is truncated or damaged."
            )
    decided = {block for block in formats.values() if block in _Q2_0}
    for tensor in undecided:  # so small that padding hides the difference
        if len(decided) != 1:
            raise CheckpointError(
                f"{file.place(tensor.name)} of type {type_name(tensor.number)} is so small that its bytes do not tell whether its blocks "
                "have 64 or 128 weights, and no other tensor does."
            )
        formats[tensor.name] = next(iter(decided))
    for name, block in formats.items():
        tensor = file.tensors[name]
        if tensor.shape[-1] % block.weights:
            raise CheckpointError(
                f"{file.place(name)}: rows of {tensor.shape[-1]} weights are no multiple of {block.weights}, as {block.name} needs."
            )
        file.rows(tensor, row_bytes(tensor, block), 0, 0)
    return formats


def _fits(file: GgufFile, tensor: GgufTensor, block: BlockFormat) -> bool:
    return tensor.shape[-1] % block.weights == 0 and file.holds(tensor, block.size(tensor.shape))


def _format(file: GgufFile, tensor: GgufTensor) -> TensorType:
    if tensor.number in _TERNARY:
        return _TERNARY[tensor.number]
    block = _float_format(tensor.number)
    if block is None:
        raise CheckpointError(
            f"{file.place(tensor.name)} is of type {type_name(tensor.number)}, which is not known here: nothing was imported."
        )
    return block


@cache
def _float_format(number: int) -> TensorType | None:
    try:
        kind = GGMLQuantizationType(number)
        weights, size = GGML_QUANT_SIZES[kind]
        if kind.name != "F64":
            dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return TensorType(kind.name, number, weights, size)


def row_bytes(tensor: GgufTensor, block: TensorType) -> int:
    """Bytes of one row."""
    return tensor.shape[-1] // block.weights * block.bytes


def as_floats(data: np.ndarray, block: TensorType) -> np.ndarray:
    """Bytes of rows, uint8 `[rows, bytes]`, as float32 `[rows, columns]`."""
    kind: Any = GGMLQuantizationType(block.number)
    data = np.ascontiguousarray(data)
    if kind == GGMLQuantizationType.F64:
        return data.view("<f8").astype(np.float32)
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # (what is not finite is refused by who knows the tensor's name)
        return dequantize(data, kind).astype(np.float32)
