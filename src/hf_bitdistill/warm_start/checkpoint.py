"""The file that an interrupted warm start goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..processes import is_first, together


def write_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write so that the file is there completely or not at all; of several processes, which have the same state, the first one."""
    if not is_first():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as writer:
        torch.save(state, writer)
        writer.flush()
        os.fsync(writer.fileno())
    os.replace(temporary, file)


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """What [`write_checkpoint`] wrote; `None` where there is nothing. Of several processes all have read before one goes on and writes."""

    def read() -> dict[str, Any] | None:
        return torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else None

    return together(read, f"reading {file}")
