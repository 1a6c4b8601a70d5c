"""A student as a GGUF file with I2_S tensors, for bitnet.cpp (github.com/microsoft/BitNet)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..gguf_format import TensorType, i2_s_layout
from ..nn import BitLinear, TernaryLinear
from ..runtime.students import Student
from .errors import UnsupportedExportError
from .exported_file import ExportedFile
from .gguf_encoding import F16
from .gguf_export import export_file
from .gguf_models import FileModel, FileTensor
from .gguf_plan import PlannedTensor, TensorPlan, pieces, row_order


_I2_S = TensorType("I2_S", i2_s_layout.NUMBER, 4, 1)  # (and a tail a tensor: see `i2_s.size`)
_FILE_TYPE = 40


def export_i2_s(
    model: str | os.PathLike,
    output: str | os.PathLike,
    layout: str = "x86",
    *,
    pre_tokenizer: str | None = None,
    name: str | None = None,
    **hub: Any,
) -> ExportedFile:
    """Write a ternary student as a GGUF file that bitnet.cpp computes.

    The graph is that of llama.cpp's architecture of the same name, see [`export_gguf`]. Embeddings are stored as float16, projections whose rows are no
    multiple of a block as well.

    Args:
        model: folder or Hub id of a student with one scale a matrix (`weight_granularity="tensor"`).
        output: the file, `.gguf`.
        layout: order of the codes, `"x86"` or `"arm"`: see [`hf_bitdistill.gguf_format.i2_s_layout`].
        pre_tokenizer, name, hub: see [`export_gguf`].

    Raises:
        UnsupportedExportError: bitnet.cpp has no architecture, vocabulary or scale for it; says what to use instead.
        ValueError: an unknown layout, or `output` does not end in `.gguf`.

    Other errors: see [`export_gguf`].
    """
    if layout not in i2_s_layout.LAYOUTS:
        raise ValueError(f"layout {layout!r} is not supported; choose {', '.join(i2_s_layout.LAYOUTS)}.")

    def plan(student: Student, found: FileModel) -> TensorPlan:
        if not found.graph.in_bitnet_cpp:
            raise UnsupportedExportError(
                f"bitnet.cpp has no architecture {found.graph.name!r} without norms of its own before every matrix. "
                "llama.cpp does: bitdistill export gguf."
            )
        return _Plan(student, found, layout)

    return export_file(model, output, plan, _FILE_TYPE, pre_tokenizer, name, **hub)


class _Plan(TensorPlan):
    """As for llama.cpp, ternary matrices excepted."""

    def __init__(self, student: Student, model: FileModel, layout: str):
        self._layout = layout
        super().__init__(student, model, ternary=None, table=F16)

    def _ternary_matrix(self, tensor: FileTensor, module: BitLinear | TernaryLinear) -> PlannedTensor:
        if module.weight_granularity != "tensor":
            raise UnsupportedExportError(
                f"{tensor.source} has a scale for each {module.weight_granularity}, I2_S one for a matrix: train a student with "
                "weight_granularity='tensor', or use llama.cpp's types, which have room for these (bitdistill export gguf)."
            )
        (rows, columns), block = tensor.shape, i2_s_layout.LAYOUTS[self._layout]
        if columns % block:
            reason = f"rows of {columns} are no multiple of {block}"
            return self._planned(tensor, F16, reason, lambda: self._ternary_rows(tensor, F16))
        return PlannedTensor(tensor, _I2_S, "", i2_s_layout.size(rows * columns), lambda: self._packed(tensor))

    def _packed(self, tensor: FileTensor) -> Iterator[np.ndarray]:
        layer = self.student.layer(tensor.source)
        codes, order = layer.unpack(), row_order(tensor.shape[0], tensor.heads)
        rows = (codes[order[part]].numpy() for part in pieces(*tensor.shape))
        yield from i2_s_layout.pack_i2_s(rows, float(layer.weight_scale), self._layout)
