"""A model's folder: a new model takes the place of an older one at once, and never that of the model it is made from.

A folder holds several files, and no system call replaces several. What decides is config.json alone: transformers reads it
first, and it may name the weights' file. So the new model is written into a folder inside, then

1. a config.json that names the weights in that folder is renamed over the old one: from here on the new model is loaded;
2. tokenizer, generation settings and whatever else was written take their places;
3. the weights get their usual names (hard links), and those of the old model are removed;
4. the final config.json is renamed over the first; that folder goes.

Whoever is killed, at any moment, leaves the old or the new model. The folder itself stays what it is (a mount, a symbolic link, the
working directory of a shell), and what else lies in it is not touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .atomic import flush, flush_name, lock_folder
from .weight_files import EXPLICIT_NAME, is_staging, is_weight_file, new_staging


#: What was measured of the model in a folder, how it was started, and what it answered: of no other model.
EVALUATION_FILE, WARM_START_REPORT, REFERENCE_FILE = "evaluation.json", "warm_start.json", "verification.json"
RECORDS = (EVALUATION_FILE, WARM_START_REPORT, REFERENCE_FILE)

#: In a model's folder: what was computed of it for this machine (`runtime/native_key.py`). Uploads of huggingface_hub leave it out.
NATIVE_FOLDER, NATIVE_SUFFIX = ".cache/huggingface/bitdistill", ".native"

#: In the folder of a run of the recipe: the packed student's folder, that of the stages, what was measured.
PACKED, STAGES, RESULT_FILE = "packed", "stages", "result.json"

# What safetensors itself leaves when it is killed while it writes.
_SAFETENSORS_LEFTOVER = re.compile(r"\.tmp[A-Za-z0-9]{6}")


def check_output(output: str | os.PathLike, **sources: str | os.PathLike | None) -> None:
    """Refuse to write over, into or around what is read. Symbolic links are followed.

    Args:
        output: a folder, which need not exist.
        sources: what each is -> a folder that is read. Hub ids and `None` pass.

    Raises:
        ValueError: naming both.
    """
    target = Path(output).expanduser().resolve()
    for what, source in sources.items():
        folder = None if source is None else Path(source).expanduser()
        if folder is None or not folder.is_dir():
            continue
        folder = folder.resolve()
        if target.exists() and target.samefile(folder):
            relation = "is"
        elif _is_above(folder, target):
            relation = "lies inside"
        elif target.exists() and _is_above(target, folder):
            relation = "contains"
        else:
            continue
        raise ValueError(
            f"the output folder {output} {relation} {source}, the {what.replace('_', ' ')} that is read, which would be lost or mixed "
            "up with what is written: give another folder."
        )


def _is_above(folder: Path, other: Path) -> bool:
    """Whether `folder`, which exists, is a parent of `other`."""
    return any(parent.exists() and parent.samefile(folder) for parent in other.parents)


@contextmanager
def replace_model(folder: str | os.PathLike) -> Iterator[Path]:
    """Gives an empty folder; what is written there, files and subfolders, is in `folder` afterwards.

    A model that was in `folder` before is there unchanged until the new one is complete, and if the body fails. Other files stay,
    unless one of the same name was written; weight files of the older model, and what was measured of it, do not. Weight files get
    the mode of other new files.

    If `folder` has no model yet, config.json comes last. Not covered by the promise of "old or new": weights of a `variant`, and a
    tokenizer, which follows the model within the same few renames.

    Raises:
        NotADirectoryError: `folder` is a file.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    staging = new_staging(folder)
    lock = None
    try:
        staging.mkdir()
        lock = lock_folder(staging)
        yield staging
        if any(staging.iterdir()):  # (nothing: a rank that only takes part in gathering)
            _publish(staging, folder)
            _clean(folder)
    except BaseException:
        _remove_staging(staging, folder, lock)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # (only if it is empty)
        raise
    _remove_staging(staging, folder, lock)


def _publish(staging: Path, folder: Path) -> None:
    names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if not path.is_dir())
    weights = [name for name in names if is_weight_file(name)]
    others = [name for name in names if name not in weights and name != CONFIG_NAME]
    _set_mode(staging, names)
    pointing = None
    if weights and CONFIG_NAME in names and (folder / CONFIG_NAME).exists():
        pointing = _pointing_config(staging, weights)
    flush(staging)
    if weights:
        # Before there is another model: what is said of the older one must not be read of the new one.
        for name in (*RECORDS, *({GENERATION_CONFIG_NAME} - set(names))):
            (folder / name).unlink(missing_ok=True)
        for file in (folder / NATIVE_FOLDER).glob(f"*{NATIVE_SUFFIX}"):
            file.unlink(missing_ok=True)
    if pointing is not None:
        pointing.replace(folder / CONFIG_NAME)
        flush_name(folder / CONFIG_NAME)
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(folder / name)
    # The index last: until then it would name files that are not there yet.
    for name in sorted(weights, key=lambda name: name == SAFE_WEIGHTS_INDEX_NAME):
        if pointing is None:
            (staging / name).replace(folder / name)
        else:
            _link(staging / name, staging / f"{name}.link").replace(folder / name)
    if weights:
        for file in folder.iterdir():
            if is_weight_file(file.name) and file.name not in weights:
                file.unlink()
        flush_name(folder / CONFIG_NAME)
    if CONFIG_NAME in names:
        (staging / CONFIG_NAME).replace(folder / CONFIG_NAME)
        flush_name(folder / CONFIG_NAME)


def _set_mode(staging: Path, names: list[str]) -> None:
    """Give weights, which safetensors writes for their owner alone, the mode of any other new file."""
    probe = staging / "mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for name in names:
        if name.endswith(".safetensors"):
            (staging / name).chmod(mode)


def _pointing_config(staging: Path, weights: list[str]) -> Path | None:
    """A config.json by which transformers finds the weights in `staging`; `None` if these are no whole model."""
    if SAFE_WEIGHTS_INDEX_NAME in weights:
        # Names in an index are relative to the model's folder.
        entry = f"pointing.{SAFE_WEIGHTS_INDEX_NAME}"
        index = json.loads((staging / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        index["weight_map"] = {key: f"{staging.name}/{name}" for key, name in index["weight_map"].items()}
        _write(staging / entry, index)
    elif SAFE_WEIGHTS_NAME in weights:
        entry = SAFE_WEIGHTS_NAME
    else:
        return None
    config = json.loads((staging / CONFIG_NAME).read_text(encoding="utf-8"))
    return _write(staging / f"pointing.{CONFIG_NAME}", {**config, EXPLICIT_NAME: f"{staging.name}/{entry}"})


def _write(file: Path, content: dict) -> Path:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


def _link(file: Path, name: Path) -> Path:
    """The same file under a second name; a copy where the file system has no hard links."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)
        shutil.copymode(file, name)
        flush(name)
    return name


def _remove_staging(staging: Path, folder: Path, lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
    if not _is_named(folder, staging):
        shutil.rmtree(staging, ignore_errors=True)


def _is_named(folder: Path, staging: Path) -> bool:
    """Whether the model in `folder` is the one in `staging`."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        return str(config.get(EXPLICIT_NAME, "")).startswith(f"{staging.name}/")
    except (FileNotFoundError, ValueError, AttributeError):
        return False  # no model is loaded by such a file
    except OSError:
        return True  # it cannot be told: rather a leftover than a loss


def _is_private_file(path: Path) -> bool:
    """Whether it is a file for its owner alone, as safetensors makes them."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mode) and not mode & 0o077


def _clean(folder: Path) -> None:
    """Remove what killed saves left."""
    for path in list(folder.iterdir()):
        if _SAFETENSORS_LEFTOVER.fullmatch(path.name) and _is_private_file(path):
            path.unlink(missing_ok=True)
        elif is_staging(path) and path.is_dir() and not path.is_symlink():
            try:
                lock = lock_folder(path)
            except BlockingIOError:
                continue
            if lock is not None:
                # (A save that is at work in another process has its own.)
                if not _is_named(folder, path):
                    shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
