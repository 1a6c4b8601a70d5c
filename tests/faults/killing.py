"""Run something in a child process and kill it at its n-th file operation, at a random moment, or by filling its disk.

An operation is what an audit hook of the interpreter sees on a path under the watched folder (open for writing, rename, remove,
mkdir, rmdir, link, truncate) and what safetensors writes, which opens its file outside the interpreter.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch


_PATH_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


@dataclass(frozen=True)
class Outcome:
    """What became of the child."""

    killed: bool
    exit_status: int | None
    operations: int
    """File operations it had begun."""
    output: str


def number_of_operations(run: Callable[[], object], folder: str | os.PathLike) -> int:
    """How many file operations under `folder` an undisturbed `run` does, in a child.

    Raises:
        RuntimeError: it failed.
    """
    outcome = run_and_kill(run, folder, at_operation=None)
    if outcome.exit_status != 0:
        raise RuntimeError(f"the run itself failed:\n{outcome.output[-3000:]}")
    return outcome.operations


def run_and_kill(
    run: Callable[[], object],
    folder: str | os.PathLike,
    at_operation: int | None = None,
    after_seconds: float | None = None,
) -> Outcome:
    """Fork, run in the child, and kill it with SIGKILL.

    Args:
        run: what is run; an integer that it returns is the exit status, an exception is status 1.
        folder: operations on what is in it are counted.
        at_operation: the child dies just before its operation of this number, from 0 (or never, if it does fewer).
        after_seconds: it is killed so long after its start, if it still runs.
    """
    folder = os.path.realpath(folder)
    reader, writer = os.pipe()
    log = Path(f"{folder.rstrip(os.sep)}.log-{os.getpid()}")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(run, folder, at_operation, writer, log)
    os.close(writer)
    started = time.monotonic()
    status = None
    while status is None:
        pid, value = os.waitpid(child, os.WNOHANG if after_seconds is not None else 0)
        if pid:
            status = value
        elif time.monotonic() - started > after_seconds:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            time.sleep(0.002)
    operations = b""
    while chunk := os.read(reader, 1 << 16):
        operations += chunk
    os.close(reader)
    output = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Outcome(killed, None if killed else os.waitstatus_to_exitcode(status), len(operations), output)


def kill_points(operations: int, count: int, seed: int) -> list[int]:
    """`count` different numbers of operations (or all, if there are fewer), the last one among them."""
    points = list(range(operations))
    if count >= operations:
        return points
    chosen = random.Random(seed).sample(points[:-1], count - 1)
    return sorted([*chosen, operations - 1])


def _in_child(run: Callable[[], object], folder: str, at_operation: int | None, writer: int, log: Path) -> None:
    status = 1
    gc.freeze()  # what the parent has made is not looked at again by every collection
    try:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        seen = 0

        def operation(path: object) -> None:
            nonlocal seen
            if not isinstance(path, (str, bytes, os.PathLike)):
                return
            parent, base = os.path.split(folder)
            name = os.path.realpath(os.path.join(os.getcwd(), os.fsdecode(path)))
            # In the folder, or in what is written beside it to take its place.
            if os.path.commonpath([name, parent]) != parent or name == parent or name == str(log):
                return
            if base not in os.path.relpath(name, parent).split(os.sep)[0]:
                return
            if seen == at_operation:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            os.write(writer, b".")

        def hook(event: str, arguments: tuple) -> None:
            if event == "open":
                path, _, flags = arguments
                if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    operation(path)
            elif event in _PATH_EVENTS:
                operation(_full_path(event, arguments))

        sys.addaudithook(hook)
        _count_safetensors(operation)
        result = run()
        status = result if isinstance(result, int) else 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _full_path(event: str, arguments: tuple) -> object:
    """The path of an operation; `shutil.rmtree` names entries relative to an open folder."""
    path, handle = arguments[0], arguments[-1]
    if event in ("os.remove", "os.rmdir", "os.mkdir") and isinstance(handle, int) and handle >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{handle}"), os.fsdecode(path))
    return path


def _count_safetensors(operation: Callable[[object], None]) -> None:
    """safetensors (and torch.save, in C++) write without the interpreter: an operation before and one in the middle, with the
    file half written."""

    def wrapped(save: Callable, path_of: Callable[[tuple, dict], object]) -> Callable:
        def write(*args, **kwargs):
            path = path_of(args, kwargs)
            operation(path)
            result = save(*args, **kwargs)
            if isinstance(path, (str, os.PathLike)):
                whole = Path(path).read_bytes()
                os.truncate(path, len(whole) // 2)  # an operation: the kill finds half a file
                operation(path)
                with open(path, "wb") as file:
                    file.write(whole)
            return result

        return write

    save_file = wrapped(
        safetensors.torch.save_file, lambda args, kwargs: kwargs.get("filename", (*args, None, None)[1])
    )
    original = safetensors.torch.save_file
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, name, save_file)
    torch.save = wrapped(torch.save, lambda args, kwargs: kwargs.get("f", (*args, None, None)[1]))
