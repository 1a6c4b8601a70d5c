"""The file that an interrupted warm start goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def write_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write so that the file is there completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as writer:
        torch.save(state, writer)
        writer.flush()
        os.fsync(writer.fileno())
    os.replace(temporary, file)


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """What [`write_checkpoint`] wrote; `None` where there is nothing."""
    return torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else None
