"""What an export wrote, for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..files.disk_room import size_text
from ..pages.tables import markdown_table


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
    """

    path: Path
    architecture: str
    size: int
    types: list[tuple[str, int, int, str]]
    fallbacks: dict[str, tuple[str, str]] = field(default_factory=dict)
    scale_error: float = 0.0
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Lines for a terminal."""
        rows = [[kind, str(count), size_text(size), reason] for kind, count, size, reason in self.types]
        lines = [
            f"{self.path}: {size_text(self.size)}, architecture {self.architecture!r}",
            "",
            markdown_table(["type", "tensors", "size", "because"], rows),
            "",
        ]
        if self.scale_error:
            lines.append(f"Scales are rounded to 16 bits: by {100 * self.scale_error:.2g} % at most.")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])
