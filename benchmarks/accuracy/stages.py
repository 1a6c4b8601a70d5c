"""Stages that run once: a folder by the hash of everything that decides the result, and a result written last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_bitdistill.environment import describe_environment


RESULT = "result.json"


@dataclass(frozen=True)
class Stage:
    """A finished stage: its key, its folder (with the model in `model/`) and what it measured."""

    key: str
    folder: Path
    result: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / "model"


def write_json(path: Path, value: Any) -> None:
    """Write so that the file is there completely or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class StageStore:
    """Runs stages, or finds them done, in folders below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(
        self, kind: str, settings: dict[str, Any], work: Callable[[Path], dict[str, Any]], parent: Stage | None = None
    ) -> Stage:
        """The stage with these settings after `parent`.

        Args:
            kind: of stage; begins the folder's name.
            settings: everything that decides the result, JSON-able.
            work: does the stage in its folder and returns what it measured. It may find there what an interrupted run of
                itself left.
            parent: the stage it starts from; part of the key.
        """
        identity = {"kind": kind, "settings": settings, "parent": parent.key if parent else None}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.folder / f"{kind}-{key}"
        file = folder / RESULT
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"[{kind}-{key}] {json.dumps(settings)}", flush=True)
            started = time.perf_counter()
            measured = work(folder)
            seconds = round(time.perf_counter() - started, 1)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            write_json(file, {**identity, "machine": describe_environment(), "seconds": seconds, **measured})
        return Stage(key, folder, json.loads(file.read_text(encoding="utf-8")))
