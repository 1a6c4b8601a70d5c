"""A training's checkpoint as it is published: whole for whoever resumes from it, without what belongs to this machine alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Set
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from ..files.json_files import read_json
from ..files.training_checkpoints import MANIFEST
from ..hub.source import Files, without_local_paths


def checkpoint_files(folder: Path, place: str, secrets: Set[str] = frozenset()) -> Files:
    """All files of a checkpoint, under `place` in the repository, but for the training arguments.

    The best checkpoint is named without the folders above it, settings tell no local path, and the manifest says what is left.

    Args:
        secrets: taken out of settings.
    """
    files: Files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(TRAINING_ARGS_NAME, None)
    if TRAINER_STATE_NAME in files:
        state = read_json(folder / TRAINER_STATE_NAME)
        if state.get("best_model_checkpoint"):
            state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
        files[TRAINER_STATE_NAME] = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
    files = without_local_paths(files, folder, secrets)
    if MANIFEST in files:
        manifest = read_json(folder / MANIFEST)
        listed = manifest["files"]
        listed.pop(TRAINING_ARGS_NAME, None)
        for name, content in files.items():
            if isinstance(content, bytes):  # (not as it is in the folder)
                listed[name] = {"size": len(content), "crc32": zlib.crc32(content)}
        files[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    return {f"{place}/{name}": content for name, content in files.items()}
