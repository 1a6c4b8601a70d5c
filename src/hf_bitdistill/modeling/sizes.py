"""What the bytes of a student's checkpoint are spent on, told by the headers of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from ..files.json_files import read_json
from ..files.tensor_headers import tensors_of
from ..files.weight_files import EXPLICIT_NAME, local_weight_files
from ..pages.tables import markdown_table
from ..quantization.dense import WEIGHTS_PER_BYTE
from ..quantization.packing import VALUES_PER_BYTE


KINDS = ("ternary codes", "ternary scales", "tables", "norms", "other")
"""In the order of the table. Tables: embedding and output head, with their scales."""

_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SCALE, _SUB_NORM = "_scale", ".rms_norm.weight"
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln_?\w*)\.(weight|bias)$")


@dataclass(frozen=True)
class Sizes:
    """Of the weight files of a student.

    Attributes:
        kinds: one of [`KINDS`] -> bytes.
        headers: bytes of the files that are no tensor: names, shapes, digests.
        original: bytes of the full-precision model in bfloat16. (Of a ternary layer whose rows are no multiple of 4, up to 3 rows too many
            are counted, of one with five weights in a byte up to 4 weights: headers do not say.)
        ternary: bytes of the ternary weights in bfloat16, as part of these.
    """

    kinds: dict[str, int]
    headers: int
    original: int
    ternary: int = 0

    @property
    def ternary_share(self) -> float:
        """Of the full-precision model's weights, those that became ternary."""
        return self.ternary / self.original if self.original else 0.0

    @property
    def weight_bits(self) -> float:
        """Of a ternary weight, without scales; 0 where there is none."""
        return round(16 * self.kinds["ternary codes"] / self.ternary, 1) if self.ternary else 0.0

    @property
    def total(self) -> int:
        return sum(self.kinds.values()) + self.headers

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bytes": {**self.kinds, "headers": self.headers, "total": self.total},
            "original_bfloat16": self.original,
            "ratio": round(self.original / self.total, 2) if self.total else None,
        }

    def markdown(self) -> str:
        """A table of all kinds that there are, each in MB and as a share, and the whole beside the original."""
        kinds = {**self.kinds, "names and digests": self.headers}
        rows = [(name, _mb(size), f"{size / self.total:.1%}") for name, size in kinds.items() if size]
        rows.append(("in all", _mb(self.total), ""))
        rows.append(
            ("the original in bfloat16", _mb(self.original), f"{self.original / self.total:.2f} times as large")
        )
        ternary = self.kinds["ternary codes"] + self.kinds["ternary scales"]
        if ternary:
            ratio = f"{self.ternary / ternary:.2f} times as large"
            rows.append(("its ternary weights alone", _mb(self.ternary), ratio))
        return markdown_table(("weights", "MB", "share"), rows)


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def bytes_by_kind(folder: str | Path) -> Sizes:
    """What the weights in a local folder consist of. Reads headers only.

    Args:
        folder: of a student, packed or not. (Latent weights of one in training count as "other".)

    Raises:
        CheckpointError: a file is missing or damaged.
        FileNotFoundError: there are no safetensors.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_NAME)
    files = local_weight_files(folder, config.get(EXPLICIT_NAME))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors.")
    tensors = {name: (dtype, shape) for file in files for name, dtype, shape in tensors_of(file)}
    vocabularies = {
        part["vocab_size"] for part in (config, *config.values()) if isinstance(part, dict) and "vocab_size" in part
    }
    kinds, original, ternary = dict.fromkeys(KINDS, 0), 0, 0
    for name, (dtype, shape) in tensors.items():
        numbers = prod(shape)
        kind = _kind(name, tensors, vocabularies)
        kinds[kind] += numbers * _SIZES.get(dtype, 1)
        if name.endswith((_SCALE, _SUB_NORM)):
            continue  # not in the original
        if dtype == "U8":
            numbers *= 2 if kind != "ternary codes" else VALUES_PER_BYTE if len(shape) == 2 else WEIGHTS_PER_BYTE
        original += 2 * numbers
        ternary += 2 * numbers if kind == "ternary codes" else 0
    return Sizes(kinds, sum(file.stat().st_size for file in files) - sum(kinds.values()), original, ternary)


def _kind(name: str, tensors: dict[str, tuple[str, tuple[int, ...]]], vocabularies: set[int]) -> str:
    weight = name.removesuffix(_SCALE)
    if f"{weight}{_SCALE}" in tensors:
        # (Scales of ternary weights are float32.)
        if tensors[weight][0] == "I8" or tensors[f"{weight}{_SCALE}"][0] == "F16":
            return "tables"
        return "ternary codes" if name == weight else "ternary scales"
    _, shape = tensors[name]
    if len(shape) == 2 and shape[0] in vocabularies:
        return "tables"
    return "norms" if _NORM.search(name) else "other"
