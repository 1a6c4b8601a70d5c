"""From the tensors of a GGUF file to those of a student, one at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..architectures import GgufGraph
from ..files.tensor_headers import CheckpointError
from ..gguf_format import BlockFormat, unpack_blocks
from ..gguf_format import tensor_names as names
from ..quantization import PackedWeightError, check_packed_weight, check_weight_scale, pack_ternary
from .block_scales import BlockScales
from .gguf_decoding import as_floats, row_bytes, tensor_formats
from .gguf_reading import GgufFile, GgufTensor


# GGUF's name -> the module's in transformers, for the architectures of `gguf_config.py`, whose names there are Llama's.
_MODEL = {names.EMBEDDING: "model.embed_tokens", names.OUTPUT_NORM: "model.norm", names.HEAD: "lm_head"}
_LAYER = {
    names.ATTENTION_NORM: "input_layernorm",
    names.Q: "self_attn.q_proj",
    names.K: "self_attn.k_proj",
    names.V: "self_attn.v_proj",
    names.O: "self_attn.o_proj",
    names.Q_NORM: "self_attn.q_norm",
    names.K_NORM: "self_attn.k_norm",
    names.ATTENTION_SUB_NORM: "self_attn.o_proj.rms_norm",
    names.MLP_NORM: "post_attention_layernorm",
    names.GATE: "mlp.gate_proj",
    names.UP: "mlp.up_proj",
    names.DOWN: "mlp.down_proj",
    names.MLP_SUB_NORM: "mlp.down_proj.rms_norm",
}
_NAME = re.compile(r"blk\.(0|[1-9]\d*)\.(\w+)\.(weight|bias|scale)")
# A factor that leaves nothing of a mean square beside epsilon.
_TINY = 2.0**-24
# About as many weights are unpacked at a time.
_WEIGHTS = 4 << 20


@dataclass(frozen=True)
class TernaryMatrix:
    """A matrix as the file has it: packed codes, uint8 `[ceil(rows / 4), columns]`, and its scales."""

    packed: Tensor
    rows: int
    scales: BlockScales


class GgufTensors:
    """The tensors of a file by the names they have in a student.

    Args:
        file: the file.
        graph, config: what its metadata say.

    Attributes:
        names: of the student's tensors (`model.layers.0.mlp.up_proj.weight`) -> of the file's.

    Raises:
        CheckpointError: a tensor that has no place in such a model, or of a type or size that is not understood; names it.
    """

    def __init__(self, file: GgufFile, graph: GgufGraph, config: PreTrainedConfig):
        self.file, self._config = file, config
        self._pairs_rotated = graph.pairs_rotated
        self._formats = tensor_formats(file)
        self.names: dict[str, str] = {}
        for name in file.tensors:
            self.names[self._student_name(name)] = name
        for layer in range(config.num_hidden_layers):
            self._drop_idle_norm(f"model.layers.{layer}.mlp")

    def _student_name(self, name: str) -> str:
        if name == names.FREQUENCIES:
            return name
        if name.endswith(".weight") and name.removesuffix(".weight") in _MODEL:
            return f"{_MODEL[name.removesuffix('.weight')]}.weight"
        match = _NAME.fullmatch(name)
        if match and match[2] in _LAYER and int(match[1]) < self._config.num_hidden_layers:
            return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
        raise CheckpointError(
            f"{self.file.place(name)} has no place in a model of the architecture "
            f"{self.file.metadata['general.architecture']!r}: nothing was imported."
        )

    def _drop_idle_norm(self, mlp: str) -> None:
        """Forget the norm before a `down` that is not ternary, if it does nothing: [`hf_bitdistill.export`] writes one where the
        architecture asks for it and the student has none. What comes in is so small that only epsilon counts, and is made large again."""
        norm, scale, down = f"{mlp}.down_proj.rms_norm.weight", f"{mlp}.up_proj.scale", f"{mlp}.down_proj.weight"
        if not {norm, scale, down} <= self.names.keys() or self.is_ternary(down) or self.tensor(scale).weights != 1:
            return
        weight, factor = self.floats(norm), self.floats(scale).item()
        result = weight * factor / math.sqrt(self._config.rms_norm_eps or math.inf)
        if 0 < factor <= _TINY and torch.allclose(result, torch.ones_like(result), rtol=1e-4):
            del self.names[norm], self.names[scale]

    def tensor(self, name: str) -> GgufTensor:
        return self.file.tensors[self.names[name]]

    def place(self, name: str) -> str:
        """File and tensor, for messages."""
        return self.file.place(self.names[name])

    def is_ternary(self, name: str) -> bool:
        return isinstance(self._formats[self.names[name]], BlockFormat)

    def type_of(self, name: str) -> str:
        """What the type of a tensor is called."""
        return self._formats[self.names[name]].name

    def _order(self, name: str) -> np.ndarray | None:
        """Which row of the file each row of a student's tensor is; `None`: the same one. llama.cpp stores the rows of a head's first and second half in turn."""
        part, kind = name.rsplit(".", 2)[-2:]
        if not self._pairs_rotated or part not in ("q_proj", "k_proj") or kind == "scale":
            return None
        heads = self._config.num_attention_heads if part == "q_proj" else self._config.num_key_value_heads
        rows = self.tensor(name).shape[0]
        if heads < 1 or rows % (2 * heads):
            raise CheckpointError(f"{self.place(name)}: {rows} rows are no {heads} heads.")
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _pieces(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        tensor, block = self.tensor(name), self._formats[self.names[name]]
        rows, count = tensor.weights // tensor.shape[-1], max(1, _WEIGHTS // tensor.shape[-1])
        for start in range(0, rows, count):
            stop = min(start + count, rows)
            yield slice(start, stop), self.file.rows(tensor, row_bytes(tensor, block), start, stop)
        self.file.release()

    def _codes(self, name: str, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return unpack_blocks(data, cast(BlockFormat, self._formats[self.names[name]]))
        except ValueError as error:
            raise CheckpointError(f"{self.place(name)} {error}.") from None

    def ternary(self, name: str) -> TernaryMatrix:
        """A matrix of a ternary type. Its scales are exactly those of the file.

        Raises:
            CheckpointError: a code is none of -1, 0, 1, a scale is not finite or negative, or all weights are equal.
        """
        tensor, block = self.tensor(name), self._formats[self.names[name]]
        rows, columns = tensor.shape
        codes = np.empty((rows, columns), np.int8)
        values = np.empty((rows, columns // block.weights), np.float32)
        for part, data in self._pieces(name):
            codes[part], values[part] = self._codes(name, data)
        blocks = codes.reshape(rows, -1, block.weights)
        blocks[values == 0] = 0  # (a weight is its code times the scale)
        free = np.logical_not(blocks.any(axis=-1))
        factor = self._factor(name)
        if factor is not None:
            values = values * factor
        order = self._order(name)
        if order is not None:
            codes, values, free = codes[order], values[order], free[order]
        packed = pack_ternary(torch.from_numpy(codes))
        try:
            check_packed_weight(packed, rows, columns)
            check_weight_scale(torch.from_numpy(values[~free]), (int((~free).sum()),))
        except PackedWeightError as error:
            raise CheckpointError(f"{self.place(name)} {error}.") from None
        return TernaryMatrix(packed, rows, BlockScales(values, free, block.weights, columns))

    def _factor(self, name: str) -> np.float32 | None:
        """What a matrix is multiplied by besides its own scales."""
        scale = f"{name.removesuffix('weight')}scale"
        if scale not in self.names:
            return None
        if self.tensor(scale).weights != 1:
            raise CheckpointError(f"{self.place(scale)} has the shape {list(self.tensor(scale).shape)}, expected [1].")
        return np.float32(self.floats(scale).item())

    def float_pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor as float32, in pieces of its first dimension.

        Raises:
            CheckpointError: a value is not finite; names the tensor.
        """
        block, order = self._formats[self.names[name]], self._order(name)
        factor = self._factor(name) if name.endswith(".weight") else None
        pieces = []
        for _, data in self._pieces(name):
            if isinstance(block, BlockFormat):
                codes, scales = self._codes(name, data)
                values = codes * np.repeat(scales, block.weights, axis=1)
            else:
                values = as_floats(data, block)
            if factor is not None:
                values = values * factor
            if not np.isfinite(values).all():
                raise CheckpointError(f"{self.place(name)}: a value is not finite.")
            if order is None:
                yield self._shaped(name, torch.from_numpy(values))
            else:
                pieces.append(values)
        if order is not None:  # rows of all pieces change places (a bias is one row)
            whole = np.concatenate(pieces).reshape(self.tensor(name).shape)
            yield torch.from_numpy(whole[order])

    def _shaped(self, name: str, values: Tensor) -> Tensor:
        return values if len(self.tensor(name).shape) > 1 else values.reshape(-1)

    def floats(self, name: str) -> Tensor:
        """A tensor as float32; see [`float_pieces`]."""
        return torch.cat(list(self.float_pieces(name)))
