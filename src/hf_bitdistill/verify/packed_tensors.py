"""The packed layers of a checkpoint, looked at one by one in its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from safetensors import safe_open

from ..files.tensor_headers import CheckpointError, tensors_of
from ..modeling.checkpoint import stored_codes
from ..quantization import PackedWeightError, check_weight_scale
from ..quantization.dense import WEIGHTS_PER_BYTE


SCALE = "_scale"
# Of embedding and head in 4 bits, whose codes are bytes too. (Those of ternary weights are float32.)
_SCALES_OF_A_TABLE = "F16"


@dataclass(frozen=True)
class LayerFacts:
    """A packed layer.

    Attributes:
        name: of its weight.
        rows, columns: of the matrix; where there is one scale for all of it, rows are rounded up to a multiple of four, and of one with five
            weights in a byte nothing is known but their number, which is that of the columns of one row then (rounded up to a multiple of five).
        zeros: share of codes that are 0.
        smallest_scale, largest_scale: of its weight scales.
    """

    name: str
    rows: int
    columns: int
    zeros: float
    smallest_scale: float
    largest_scale: float


def packed_layers(files: Iterable[str]) -> Iterator[LayerFacts]:
    """Facts of every packed layer; reads one at a time.

    Args:
        files: the model's weight files.

    Raises:
        CheckpointError: codes or scales that no packed layer has, a layer without scales; names file and tensor.
    """
    kinds = {name: (file, dtype) for file in files for name, dtype, shape in tensors_of(file) if len(shape) in (1, 2)}
    for name, (file, dtype) in sorted(kinds.items()):
        if dtype != "U8" or not name.endswith(".weight"):
            continue
        if name + SCALE in kinds and kinds[name + SCALE][1] == _SCALES_OF_A_TABLE:
            continue
        if name + SCALE not in kinds:
            raise CheckpointError(f"{file}: tensor {name!r} has codes and no scales ({name + SCALE!r} is missing).")
        with safe_open(file, framework="pt") as reader:
            packed = reader.get_tensor(name)
        with safe_open(kinds[name + SCALE][0], framework="pt") as reader:
            scale = reader.get_tensor(name + SCALE)
        by_row = scale.shape[0] > 1 or scale.ndim == 2
        dense = packed.ndim == 1
        rows = scale.shape[0] if by_row else 1 if dense else 4 * packed.shape[0]
        columns = packed.numel() * WEIGHTS_PER_BYTE // rows if dense else packed.shape[1]
        try:
            check_weight_scale(scale, tuple(scale.shape))
        except PackedWeightError as error:
            raise CheckpointError(f"{kinds[name + SCALE][0]}: tensor {name + SCALE!r} {error}.") from None
        try:
            codes = stored_codes(packed, rows, columns)
        except PackedWeightError as error:
            raise CheckpointError(f"{file}: tensor {name!r} {error}.") from None
        if codes.max() > 1 or codes.min() < -1:
            raise CheckpointError(f"{file}: tensor {name!r} holds a code that is not -1, 0 or 1.")
        zeros = (codes == 0).sum().item() / codes.numel()
        yield LayerFacts(name, rows, columns, zeros, scale.min().item(), scale.max().item())
