"""What an export wrote, for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..files.disk_room import size_text
from ..pages.tables import markdown_table


# Between the name of a tensor and that of its layers.
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class ExportedFile:
    """A file for another program.

    Attributes:
        path: where it is. size: its bytes.
        architecture: what the other program computes.
        types: type, number of tensors, bytes, why that type; the largest first.
        fallbacks: tensors that did not get the type that was asked for -> their type and why.
        scale_error: the largest relative error of a scale, which has 16 bits in the file.
        notes: what else is not as it is here.
        layers: of the model.
    """

    path: Path
    architecture: str
    size: int
    types: list[tuple[str, int, int, str]]
    fallbacks: dict[str, tuple[str, str]] = field(default_factory=dict)
    scale_error: float = 0.0
    notes: list[str] = field(default_factory=list)
    layers: int = 0

    def text(self) -> str:
        """Lines for a terminal."""
        rows = [[kind, str(count), size_text(size), reason] for kind, count, size, reason in self.types]
        lines = [
            f"{self.path}: {size_text(self.size)}, architecture {self.architecture!r}",
            "",
            markdown_table(["type", "tensors", "size", "because"], rows),
            "",
            *self._fallback_lines(),
        ]
        if self.scale_error:
            lines.append(f"Scales are rounded to 16 bits: by {100 * self.scale_error:.2g} % at most.")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])

    def _fallback_lines(self) -> list[str]:
        """Which tensors did not get the type that was asked for."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, found in self.fallbacks.items():
            groups.setdefault(found, []).append(name)
        lines = [
            f"{kind}, because {reason}: {', '.join(compact_names(names, self.layers))}."
            for (kind, reason), names in groups.items()
        ]
        return [*lines, ""] if lines else []


def compact_names(names: Iterable[str], layers: int) -> list[str]:
    """Names of tensors, those of one kind in all layers as one: `blk.*.attn_q` where every layer has it, `blk.{2,11}.ffn_down` for some."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        stem = name.removesuffix(".weight")
        numbers = kinds.setdefault(_LAYER.sub(".*.", stem), [])
        numbers += _LAYER.findall(stem)
    return [kind.replace("*", _shown(numbers, layers)) for kind, numbers in kinds.items()]


def _shown(numbers: list[str], layers: int) -> str:
    if len(numbers) == layers:
        return "*"
    return numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}"
