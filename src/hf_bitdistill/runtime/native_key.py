"""Which native file belongs to a checkpoint: where it lies, what it was made for, and whether the checkpoint is still the same.

The checkpoint's files are told by their contents. Reading all of them at every start would cost what a native file saves, so a file is taken
for unchanged while size, inode, and the times of its last change and of its status are those of the last comparison (`os.utime` cannot set the
second). Where these differ, after a copy for instance, the contents are read and compared, and if they are the same, the new state is stamped
on the native file.

It lies in the folder for what belongs to one machine, which huggingface_hub never uploads and anybody may delete; of a model in the Hub's own
cache, or in a folder that cannot be written, in the cache of this library.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from huggingface_hub import constants
from transformers import PreTrainedConfig

from ..files.model_folder import NATIVE_FOLDER, NATIVE_SUFFIX
from ..files.weight_files import EXPLICIT_NAME, is_staging
from ..machine.environment import processor_name
from ..modeling.digests import digest_of_file
from ..ops import binding
from ..ops.c_header import ABI_VERSION
from .native_format import NativeFile


#: "0" switches native files off: none is read, none is written.
SWITCH = "HF_BITDISTILL_NATIVE_FILES"

# A file that changed this shortly before may change again without another time: clocks of file systems tick in up to two seconds.
_SETTLED_SECONDS = 2.5
_UNREAD_SECONDS = 30 * 24 * 3600
_HUB_SNAPSHOT = re.compile(r"(models|datasets|spaces)--.+/snapshots/[^/]+(/.*)?$")

# name -> size, times in nanoseconds, inode
States = dict[str, list[int]]


def is_enabled() -> bool:
    """Whether native files are used at all."""
    return os.environ.get(SWITCH, "1") != "0"


def check_enabled() -> None:
    """Refuse to write what nobody would read.

    Raises:
        ValueError: native files are switched off; says by what.
    """
    if not is_enabled():
        raise ValueError(f"{SWITCH}=0 switches native files off, so that none would be read: unset it")


def make_key(config: PreTrainedConfig, head: str, head_bits: int) -> dict[str, Any]:
    """Everything but the weights that decides what a native file holds. Of another version it is not read: how an architecture is
    described, and what frequencies its rotary embedding has, is code.

    Args:
        config: of the checkpoint.
        head: of [`hf_bitdistill.modeling.model_heads.HEADS`].
        head_bits: of embedding and head in memory.
    """
    from .. import __version__

    values = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "name_or_path", EXPLICIT_NAME):
        values.pop(name, None)
    return {
        "config": xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode()),
        "head": head,
        "head_bits": head_bits,
        "layout": [ABI_VERSION, sys.byteorder, *_kernels()],
        "versions": [
            __version__,
            transformers.__version__,
            torch.__version__,
            torch.backends.cpu.get_cpu_capability(),
        ],
    }


def _kernels() -> list[str | None]:
    """What the form of weights in memory depends on: it is measured, which takes longer than a start should (`packs_densely`)."""
    library, _ = binding.load()
    return [library.isa if library else None, processor_name(), os.environ.get(binding.DENSE_SWITCH)]


def states_of(files: Sequence[str]) -> States:
    """How the system describes the files now."""
    states = {}
    for file in files:
        found = os.stat(file)
        states[os.path.basename(file)] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return states


def settled(states: States) -> States | None:
    """States that tell any later change; `None` while the next one might not be told."""
    newest = max(max(state[1], state[2]) for state in states.values())
    return states if time.time_ns() - newest > _SETTLED_SECONDS * 1e9 else None


def digests_of(files: Sequence[str]) -> dict[str, str]:
    """The contents of files, by their names."""
    return {os.path.basename(file): digest_of_file(file) for file in files}


def places(files: Sequence[str], key: dict[str, Any]) -> Iterator[Path]:
    """Where the native file of a checkpoint may be, best first. Files of other versions have other names, so that two environments which
    share a model do not take turns in writing it.

    Args:
        files: its weights.
        key: of [`make_key`].
    """
    version = xxhash.xxh3_64_hexdigest(json.dumps([key["layout"], key["versions"]]).encode())[:8]
    folder, name = Path(files[0]).parent, f"{key['head']}-{key['head_bits']}.{version}{NATIVE_SUFFIX}"
    if is_staging(folder):
        return  # an interrupted save, whose folder goes with the next
    in_hub_cache = _HUB_SNAPSHOT.search(Path(os.path.abspath(folder)).as_posix()) is not None
    if not in_hub_cache and not any(os.path.islink(file) for file in files):
        yield folder / NATIVE_FOLDER / name
    # (Behind its links a file of the Hub's cache has one name in all revisions.)
    origin = "\0".join(os.path.realpath(file) for file in files)
    yield cache_folder() / f"{xxhash.xxh3_64_hexdigest(origin.encode())}-{name}"


def cache_folder() -> Path:
    """Of the native files that cannot lie beside their models."""
    return Path(constants.HF_HOME) / "bitdistill" / "native"


def remove_unused(place: Path) -> None:
    """Remove the native files beside one that was just written which nobody will read any more: those of checkpoints that are gone, and those of
    other versions for the same checkpoint and bits which were not read for weeks."""
    variant = place.name.split(".")[0]
    oldest, in_cache = time.time() - _UNREAD_SECONDS, place.parent == cache_folder()
    for other in place.parent.glob(f"*{NATIVE_SUFFIX}"):
        with suppress(OSError, ValueError):
            if other == place:
                continue
            found = other.stat()
            is_old = other.name.split(".")[0] == variant and max(found.st_atime, found.st_mtime) < oldest
            # (Beside a checkpoint, which may have been moved, there are files of no other.)
            if is_old or (in_cache and not all(map(os.path.exists, NativeFile(other).index.get("sources", ())))):
                other.unlink()
