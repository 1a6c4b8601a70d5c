"""Checkpoints of a training: which are whole, which is the newest one, which go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import (
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_NAME,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .atomic import remove_folder
from .tensor_headers import CheckpointError


MANIFEST = "bitdistill_checkpoint.json"

#: How the files begin that say where in a stream a process was.
STREAM_POSITION = "stream_position"
"""Written last into a checkpoint: its files, their sizes and checksums."""

_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_ARCHIVES = (".pt", ".pth", ".bin")
_INDEX = ".index.json"
_WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)")
# How sharded states begin: of FSDP (a folder or one file), of DeepSpeed.
_SHARDED_MODEL = ("pytorch_model_fsdp", "global_step")
_SHARDED_OPTIMIZER = (OPTIMIZER_NAME_BIN.split(".")[0], "global_step")
_CHUNK = 1 << 24


def write_manifest(folder: Path) -> None:
    """List what is in a checkpoint that is otherwise complete.

    Sizes of all files. A checksum of those beside each other in the folder, but for large archives of torch.save, which hold
    their own; parts of sharded states are many and large, of these the size has to do.
    """
    files = {}
    for file in _files(folder):
        entry: dict[str, int] = {"size": file.stat().st_size}
        if file.parent == folder and not _checks_itself(file):
            entry["crc32"] = _crc32(file)
        files[file.relative_to(folder).as_posix()] = entry
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "files": files}, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, with the file's name; `None` if it is whole.

    With a manifest, every file that it lists must be as it was. Without one (a checkpoint of `Trainer`, or of an older
    version of this library) every file must be complete in itself, and weights, and optimizer with schedule and random
    states, or none of these three, must be there.
    """
    try:
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        if not isinstance(state.global_step, int):
            return f"{TRAINER_STATE_NAME} is damaged"
    except FileNotFoundError:
        return f"{TRAINER_STATE_NAME} is missing"
    except (OSError, ValueError, TypeError):
        return f"{TRAINER_STATE_NAME} is damaged"
    manifest = folder / MANIFEST
    if not manifest.exists():
        return _damaged_content(folder) or _missing(folder)
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, entry in entries.items():
            problem = _differs(folder / name, int(entry["size"]), entry.get("crc32"))
            if problem:
                return f"{name} {problem}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a folder's files: what changes with them."""
    states = ((str(file), file.stat()) for file in sorted(_files(folder)))
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def contents(folder: Path) -> dict[str, Any]:
    """What tells a checkpoint from another of the same name: the step, and size (and checksum, where one is kept) of each file but those that
    a process writes for itself. Empty where there is no such folder."""
    if not folder.is_dir():
        return {}
    found: dict[str, Any] = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size} for file in _files(folder)
    }
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        found |= {name: entry for name, entry in kept.items() if found.get(name, {}).get("size") == entry["size"]}
    found = {name: entry for name, entry in found.items() if not _is_of_one_process(name)}
    with contextlib.suppress(OSError, ValueError, TypeError):
        found["step"] = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step
    return found


def _is_of_one_process(name: str) -> bool:
    return name.startswith(("rng_state", STREAM_POSITION)) or name in (
        TRAINER_STATE_NAME,
        TRAINING_ARGS_NAME,
        MANIFEST,
    )


def difference(folder: Path, expected: Mapping[str, Any]) -> str | None:
    """How a checkpoint differs from the one with the [`contents`] `expected`; `None` if it does not."""
    found = contents(folder)
    if not found:
        return "it is not there"
    if found.get("step") != expected.get("step"):
        return f"it is of step {found.get('step', '?')}, not of step {expected.get('step', '?')}"
    name = next((name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)), None)
    if name is None:
        return None
    return f"{name} is not there" if name not in found else f"{name} is another file"


def holds_optimizer(folder: Path) -> bool:
    """Whether a checkpoint has an optimizer's state, and not weights alone (`save_only_model`)."""
    files = (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN)
    return any((folder / name).is_file() for name in files) or _has_folder(folder, _SHARDED_OPTIMIZER)


def processes_of(folder: Path) -> int:
    """How many processes' random states a checkpoint has, 0 for none."""
    if (folder / "rng_state.pth").is_file():
        return 1
    return len(list(folder.glob("rng_state_*.pth")))


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The checkpoint folders of a run, by their step, oldest first; whole or not."""
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        return []
    found = [(match, entry) for entry in output_dir.iterdir() if (match := _NAME.fullmatch(entry.name))]
    return [entry for match, entry in sorted(found, key=lambda item: int(item[0][1])) if entry.is_dir()]


def checkpoint_at(output_dir: str | os.PathLike, step: int | None) -> Path | None:
    """The checkpoint of a step, wherever its run lies now; `None` where there is none. (A state names paths as they were.)"""
    return next((each for each in list_checkpoints(output_dir) if each.name.rpartition("-")[2] == str(step)), None)


@dataclass
class Choice:
    """The checkpoint to go on from, and the newer ones that cannot be used, with the reasons."""

    checkpoint: Path | None = None
    skipped: dict[Path, str] = field(default_factory=dict)

    def reasons(self) -> str:
        return "; ".join(f"{folder}: {reason}" for folder, reason in self.skipped.items())


def choose(output_dir: str | os.PathLike, problem: Callable[[Path], str | None] = damage) -> Choice:
    """The newest checkpoint of a run without a `problem`."""
    choice = Choice()
    for folder in reversed(list_checkpoints(output_dir)):
        reason = problem(folder)
        if reason is None:
            choice.checkpoint = folder
            break
        choice.skipped[folder] = reason
    return choice


def rotate(run: Path, limit: int | None, newest: Path, best: str | None, is_whole: Callable[[Path], bool]) -> None:
    """Remove the oldest checkpoints, as `save_total_limit` says: `newest` and the best one always stay, and what is not whole
    does not count (nor stay)."""
    if not limit or limit <= 0:
        return
    kept = {Path(each).resolve() for each in (newest, best) if each}
    # As `Trainer` does, by the time they were written: after going back to an older one, the newer ones are the stale ones.
    others = sorted(
        (folder for folder in list_checkpoints(run) if folder.resolve() not in kept),
        key=lambda folder: (folder.stat().st_mtime, int(folder.name.rpartition("-")[2])),
        reverse=True,
    )
    count = len(kept)
    for folder in others:
        if count < limit and is_whole(folder):
            count += 1
        else:
            remove_folder(folder)


def _is_weights(name: str) -> bool:
    return bool(_WEIGHTS.fullmatch(name.removesuffix(_INDEX)))


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _has_folder(folder: Path, prefixes: tuple[str, ...]) -> bool:
    return any(entry.is_dir() and entry.name.startswith(prefixes) for entry in folder.iterdir())


def _checks_itself(file: Path) -> bool:
    large = file.stat().st_size > 4 * _CHUNK
    return large and file.suffix in _ARCHIVES and torch.serialization.get_crc32_options() and zipfile.is_zipfile(file)


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _differs(file: Path, size: int, crc32: int | None) -> str | None:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != size:
        return f"has {file.stat().st_size} bytes instead of {size}"
    if crc32 is not None:
        return None if _crc32(file) == crc32 else "is damaged (its checksum differs)"
    return _damaged_archive(file) if file.suffix in _ARCHIVES else None


def _damaged_content(folder: Path) -> str | None:
    """The first file of a checkpoint that is incomplete in itself."""
    for file in sorted(folder.iterdir()):
        problem = None
        if file.suffix == ".safetensors":
            problem = _damaged_safetensors(file)
        elif file.suffix in _ARCHIVES:
            problem = _damaged_archive(file)
        elif file.suffix == ".json":
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                problem = "is damaged"
            else:
                if file.name.endswith(_INDEX):
                    names = sorted(set(content.get("weight_map", {}).values()))
                    absent = next((name for name in names if not (folder / name).is_file()), None)
                    problem = f"names {absent}, which is missing" if absent else None
        if problem:
            return f"{file.name} {problem}"
    return None


def _missing(folder: Path) -> str | None:
    """What a checkpoint without a manifest has to have and has not."""
    names = [entry.name for entry in folder.iterdir()]
    adapters = list(folder.glob("*/adapter_model.*"))
    sharded = any(name.startswith(_SHARDED_MODEL) for name in names)
    if not (any(map(_is_weights, names)) or adapters or sharded):
        return "model.safetensors is missing"
    if "global_step" in " ".join(names):
        return None  # DeepSpeed keeps optimizer and schedule with the weights
    parts = {
        "optimizer.pt": holds_optimizer(folder),
        SCHEDULER_NAME: (folder / SCHEDULER_NAME).is_file(),
        "rng_state.pth": processes_of(folder) > 0,
    }
    absent = [name for name, is_there in parts.items() if not is_there]
    return None if len(absent) in (0, len(parts)) else f"{absent[0]} is missing"


def _damaged_safetensors(file: Path) -> str | None:
    """Whether the header says how long the file is: nothing is read but the header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                return "is incomplete"
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, IndexError, AttributeError):
        return "is damaged"
    return None if 8 + length + max(ends, default=0) == size else "is incomplete"


def _damaged_archive(file: Path) -> str | None:
    """An archive of torch.save holds a checksum for each of its parts."""
    try:
        with zipfile.ZipFile(file) as archive:
            return "is damaged" if archive.testzip() else None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError):
        return "is damaged"


def refusal(folder: Path, reason: str, choice: Choice) -> CheckpointError:
    """Why a checkpoint that was asked for is not used, and which one can be."""
    if choice.checkpoint is not None:
        advice = f"the newest whole checkpoint is {choice.checkpoint}"
    else:
        advice = "there is no whole checkpoint beside it: start again without resume_from_checkpoint"
    return CheckpointError(f"{folder} cannot be resumed from: {reason}; {advice}")
