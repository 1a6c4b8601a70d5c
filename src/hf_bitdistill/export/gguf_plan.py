"""A student's tensors in the types of a GGUF file, read and written some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..gguf_format import BlockFormat, TensorType, float16_error
from ..nn import BitLinear, TernaryLinear
from ..quantization import dequantize_table
from ..runtime.matrices import finite, place
from ..runtime.students import Student
from .errors import UnsupportedExportError
from .gguf_encoding import BF16, F32, encode, encode_ternary, table_type, ternary_type
from .gguf_models import FileModel, FileTensor


# Values that are in memory as float32 at a time.
_VALUES = 4 << 20


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and how it is written.

    Attributes:
        tensor: where it goes.
        kind: its type in the file.
        reason: why that is not the type that was asked for, or nothing.
        size: bytes.
        write: gives its bytes, in pieces.
    """

    tensor: FileTensor
    kind: TensorType
    reason: str
    size: int
    write: Callable[[], Iterator[np.ndarray]]


class TensorPlan:
    """How every tensor of a file is written.

    Args:
        student: the checkpoint.
        model: the same as llama.cpp computes it.
        ternary: block format of ternary matrices; `None`: F16.
        table: type of embedding and head.
        allow_q2_0: whether the reader knows Q2_0.

    Attributes:
        scale_error: the largest relative error of a scale that was written, in float16.
    """

    def __init__(
        self,
        student: Student,
        model: FileModel,
        ternary: BlockFormat | None,
        table: TensorType,
        allow_q2_0: bool = True,
    ):
        self.student, self.scale_error = student, 0.0
        self._ternary, self._table, self._allow_q2_0 = ternary, table, allow_q2_0
        self._modules = dict(student.model.named_modules())
        self.tensors = [self._plan(tensor) for tensor in model.tensors]

    def _plan(self, tensor: FileTensor) -> PlannedTensor:
        if tensor.kind == "constant":
            return self._planned(tensor, F32, "", lambda: iter([encode(np.array(tensor.values), F32)]))
        if tensor.kind in ("norm", "bias"):
            return self._planned(tensor, F32, "", lambda: self._vector(tensor))
        if tensor.kind == "table":
            kind, reason = table_type(self._table, tensor.shape[1])
            return self._planned(tensor, kind, reason, lambda: self._table_rows(tensor, kind))
        module = self._modules[tensor.source]
        if not isinstance(module, (BitLinear, TernaryLinear)):
            reason = "kept in full precision"
            return self._planned(tensor, BF16, reason, lambda: self._matrix(tensor))
        return self._ternary_matrix(tensor, module)

    def _ternary_matrix(self, tensor: FileTensor, module: BitLinear | TernaryLinear) -> PlannedTensor:
        kind, reason = ternary_type(self._ternary, tensor.shape[1], module.group_size, self._allow_q2_0)
        return self._planned(tensor, kind, reason, lambda: self._ternary_rows(tensor, kind))

    def _planned(self, tensor, kind, reason, write) -> PlannedTensor:
        return PlannedTensor(tensor, kind, reason, kind.size(tensor.shape), write)

    def _vector(self, tensor: FileTensor) -> Iterator[np.ndarray]:
        files, owner = self.student.files, tensor.source.rpartition(".")[0]
        stored = self.student.bias(owner) if tensor.kind == "bias" else files.read(tensor.source)
        values = finite(stored, files, tensor.source).float().numpy()
        yield encode(values[row_order(len(values), tensor.heads)], F32)

    def _matrix(self, tensor: FileTensor) -> Iterator[np.ndarray]:
        """A projection in full precision."""
        files, name = self.student.files, f"{tensor.source}.weight"
        values = finite(files.read(name), files, name)
        order = row_order(tensor.shape[0], tensor.heads)
        for rows in pieces(*tensor.shape):
            yield encode(values[order[rows]].float().numpy(), BF16)

    def _table_rows(self, tensor: FileTensor, kind: TensorType) -> Iterator[np.ndarray]:
        """Embedding or head, which the checkpoint may hold in integers."""
        files, name = self.student.files, tensor.source
        stored = self.student.stored_form(name)
        scales = None if stored is None else files.read(f"{name}_scale").clone()
        for start, piece in files.rows(name, max(1, _VALUES // tensor.shape[1])):
            values = piece
            if stored is not None and scales is not None:
                values = dequantize_table(piece, scales[start : start + len(piece)], stored.columns)
            try:
                yield encode(finite(values, files, name).float().numpy(), kind)
            except ValueError as error:
                raise UnsupportedExportError(f"{place(files, name)}: {error}; give another --table.") from None

    def _ternary_rows(self, tensor: FileTensor, kind: TensorType) -> Iterator[np.ndarray]:
        layer = self.student.layer(tensor.source)
        codes, (rows, columns) = layer.unpack(), tensor.shape
        scales = layer.weight_scale.reshape(len(layer.weight_scale), -1).expand(rows, -1)
        self.scale_error = max(self.scale_error, float16_error(layer.weight_scale.numpy()))
        order = row_order(rows, tensor.heads)
        for part in pieces(rows, columns):
            index = order[part]
            try:
                yield encode_ternary(codes[index].numpy(), scales[index].numpy(), layer.group_size, kind)
            except ValueError as error:
                header = self.student.files.headers[f"{tensor.source}.weight"]
                raise UnsupportedExportError(f"{header.file}: tensor {header.key!r} {error}.") from None


def row_order(rows: int, heads: int) -> Tensor:
    """Which row stands at each place. With heads, the two halves of each are interleaved: transformers rotates row `i` of a head with row
    `i + half`, llama.cpp's graph `llama` row `2 i` with `2 i + 1`."""
    order = torch.arange(rows)
    return order.view(heads, 2, -1).transpose(1, 2).reshape(-1) if heads else order


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a matrix, so many at a time as fit into the memory that is meant for them."""
    step = max(1, _VALUES // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
