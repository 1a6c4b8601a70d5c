"""Stages that run once: a folder by the hash of everything that decides the result, and a result written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..files.atomic import lock_folder, write_text
from ..files.model_folder import RECORDS
from ..machine import processes
from ..machine.agreement import check_shared
from ..machine.environment import describe_environment
from .settings import RecipeError


Value = TypeVar("Value")

RESULT = "result.json"
CHECKPOINTS = "checkpoints"
# What the attempts at a stage that have not finished it have taken, and how often that is written.
TAKEN = "taken.json"
_TAKEN_SECONDS = 20.0


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the context no other run is at work in `folder` (on systems that lock files; the lock goes with the first process).

    Raises:
        RecipeError: another one is.
        ProcessesError: the same in the other processes; or `folder` is not one for all.
    """
    lock: int | None = None

    def take() -> None:
        nonlocal lock
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_folder(folder)
        except BlockingIOError:
            raise RecipeError(
                f"another run is at work in {folder}: wait for its end, stop it, or take another output_dir"
            ) from None

    processes.on_first(take, f"taking the output folder {folder}")
    try:
        check_shared(folder, "Give one on a file system that all machines share.")
        yield
    finally:
        if lock is not None:
            os.close(lock)


def work_of_first(work: Callable[[], Value], what: str) -> Value:
    """What the first process does without the others, who wait for the result: nothing that it calls meets them.

    Raises:
        As `processes.from_first`.
    """

    def make() -> Value:
        with processes.alone():
            return work()

    return processes.from_first(make, what)


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        key: what tells it from others of its kind.
        folder: with the model in `model/`.
        result: what it measured.
        was_done: whether it was found, not run.
    """

    key: str
    folder: Path
    result: dict[str, Any]
    was_done: bool = False

    @property
    def model(self) -> Path:
        return self.folder / "model"


def write_json(path: Path, value: Any) -> None:
    """Write so that the file is there completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


class _StageClock:
    """What a stage takes, with the time of the attempts before that did not finish it. (Of one that was killed the last seconds are not
    known.)

    Args:
        file: has it of an attempt that was interrupted or killed; written by the first process, from the start on.

    Attributes:
        taken: `seconds`, and `interruptions` if there were any.
    """

    def __init__(self, file: Path):
        self.file = file
        self.taken: dict[str, Any] = {}
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None

    def __enter__(self) -> None:
        before = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {"seconds": 0.0}
        self._before, self._started = before, time.perf_counter()
        if processes.is_first():
            self._write()
            self._writer = threading.Thread(target=self._write_on, daemon=True)
            self._writer.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if self._writer is not None:
            self._writer.join()
            if kind is not None:
                self._write()
        self.taken = self._so_far(interrupted=kind is not None)

    def _so_far(self, interrupted: bool) -> dict[str, Any]:
        interruptions = self._before.get("interruptions", 0) + interrupted
        seconds = round(self._before["seconds"] + time.perf_counter() - self._started, 1)
        return {"seconds": seconds, **({"interruptions": interruptions} if interruptions else {})}

    def _write(self) -> None:
        """As it is if nothing more is heard of this attempt."""
        with contextlib.suppress(OSError):  # (a full disk may be what ends it)
            write_json(self.file, self._so_far(interrupted=True))

    def _write_on(self) -> None:
        while not self._ended.wait(_TAKEN_SECONDS):
            self._write()


class StageStore:
    """Runs stages, or finds them done, in folders below `folder`. Of several processes the first looks what is done, writes, and tells all
    what was measured.

    Args:
        announce: called with kind, folder and settings of a stage that is about to run. Default: a printed line.
    """

    def __init__(self, folder: Path, announce: Callable[[str, Path, dict[str, Any]], None] | None = None):
        self.folder, self.announce = folder, announce or _print

    def place(self, kind: str, settings: dict[str, Any], parent: Stage | None = None) -> tuple[dict[str, Any], Path]:
        """What identifies a stage, and its folder, whether or not it was run."""
        identity = {"kind": kind, "settings": settings, "parent": parent.key if parent else None}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        return identity, self.folder / f"{kind}-{key}"

    def run(
        self,
        kind: str,
        settings: dict[str, Any],
        work: Callable[[Path], dict[str, Any]],
        parent: Stage | None = None,
        by_first: bool = False,
    ) -> Stage:
        """The stage with these settings after `parent`.

        Args:
            kind: of stage; begins the folder's name.
            settings: everything that decides the result, JSON-able.
            work: does the stage in its folder and returns what it measured. It may find there what an interrupted run of
                itself left.
            parent: the stage it starts from; part of the key.
            by_first: the first process does all of the work. Otherwise every process calls `work`.

        Raises:
            ProcessesError: the processes have come to different stages.
        """
        identity, folder = self.place(kind, settings, parent)
        processes.agree("the next stage", folder.name, "Give every machine the same teacher, data and text.")
        file = folder / RESULT

        def look() -> dict[str, Any] | None:
            if file.is_file():
                # Of a stage that was killed between its last two steps.
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                (folder / TAKEN).unlink(missing_ok=True)
                return json.loads(file.read_text(encoding="utf-8"))
            folder.mkdir(parents=True, exist_ok=True)
            self.announce(kind, folder, settings)
            return None

        result = processes.from_first(look, f"looking for {folder}")
        was_done = result is not None
        if result is None:
            clock = _StageClock(folder / TAKEN)
            with clock:
                measured = work_of_first(lambda: work(folder), f"the stage {kind}") if by_first else work(folder)

            def finish() -> dict[str, Any]:
                write_json(file, {**identity, "machine": describe_environment(), **clock.taken, **measured})
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                (folder / TAKEN).unlink(missing_ok=True)
                return json.loads(file.read_text(encoding="utf-8"))

            result = processes.from_first(finish, f"writing {file}")
        return Stage(folder.name.removeprefix(f"{kind}-"), folder, result, was_done)


def _print(kind: str, folder: Path, settings: dict[str, Any]) -> None:
    print(f"[{folder.name}] {json.dumps(settings)}", flush=True)


# ---- What a stage depends on besides its settings ----


_SAMPLE = 1 << 20


def fingerprint_model(name_or_path: str | Path) -> str:
    """What tells a model from another: of a folder the contents of its configuration (not what was measured of it) and samples of its
    weights, of a Hub id the id and the commit that the Hub's cache has of it."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        commit = _commit_of(str(name_or_path))
        return f"{name_or_path}@{commit}" if commit else str(name_or_path)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name.endswith((".safetensors", ".bin")):
            _sample(file, digest)
        elif file.suffix in (".json", ".jinja") and file.name not in RECORDS:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _commit_of(model_id: str) -> str | None:
    """The commit of a repository that was read last, as the Hub's cache knows it: what is loaded next is of that one."""
    try:
        cached = [try_to_load_from_cache(model_id, name) for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)]
    except HFValidationError:  # no name of a repository
        return None
    return next((Path(file).parent.name for file in cached if isinstance(file, str)), None)


def fingerprint_text(path: str) -> str:
    """Of a corpus: samples of its files, wherever they lie, or its id."""
    place = Path(path).expanduser()
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    if not files:
        return path
    digest = hashlib.sha256()
    for file in files:
        _sample(file, digest)
    return digest.hexdigest()[:16]


def _sample(file: Path, digest: Any) -> None:
    """Name and size of a file, and a mebibyte from both ends and the middle."""
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with file.open("rb") as reader:
        for start in (0, size // 2, max(size - _SAMPLE, 0)):
            reader.seek(start)
            digest.update(reader.read(_SAMPLE))
