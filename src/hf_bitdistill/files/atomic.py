"""Files and folders that are written aside and renamed: who is killed meanwhile finds the old one or the new one, whole.

What is being written lies beside its place, under a name that starts with `_` (an upload of the folder by `Trainer` leaves such
names out) and ends in `.tmp-` and a tag. Such names are leftovers once nobody writes, and are removed by the next writer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module everywhere else

_MARK = ".tmp-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def name_aside(path: str | os.PathLike, tag: str | None = None) -> Path:
    """Where a file or folder that will become `path` is written.

    Args:
        path: its place in the end.
        tag: what tells several writers of it apart. Default: random.
    """
    path = Path(os.path.abspath(path))
    return path.with_name(f"_{path.name}{_MARK}{tag or secrets.token_hex(4)}")


def is_aside(path: str | os.PathLike) -> bool:
    """Whether a name is one of [`name_aside`]."""
    name = Path(path).name
    return name.startswith("_") and _MARK in name


def remove_leftovers(path: str | os.PathLike, any_ending: bool = False) -> None:
    """Remove what killed writers of `path` left beside it.

    Args:
        any_ending: also of all whose names go on with `-` and something else (`checkpoint`: every `checkpoint-10`).
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        return
    pattern = re.compile(rf"_{re.escape(path.name)}{'-.*' if any_ending else ''}{re.escape(_MARK)}.*")
    for entry in list(path.parent.iterdir()):
        if pattern.fullmatch(entry.name):
            _remove(entry)


def remove_folder(folder: str | os.PathLike) -> None:
    """Remove a folder so that it is never found half removed under its own name."""
    folder = Path(folder)
    aside = name_aside(folder)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def flush(path: str | os.PathLike) -> None:
    """Have a file, or a folder with all that is in it, written to the disk: a name must not outlive a power failure that its
    content does not."""
    path = Path(path)
    if path.is_dir():
        for entry in path.iterdir():
            flush(entry)
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        return  # a folder on Windows; a file that may not be read
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no fsync; a full disk is told here at the latest.
        if error.errno not in (errno.EINVAL, errno.EROFS, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def file_aside(path: str | os.PathLike, durable: bool = True) -> Iterator[Path]:
    """A name under which a file is written; at the end of the `with` it replaces `path`, after an exception it is removed. What
    is no ordinary file (`/dev/stdout`) is written itself.

    Args:
        durable: wait for the disk. Not where a file that a power failure cut off would be found out and made again.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    remove_leftovers(path)
    aside = name_aside(path)
    try:
        yield aside
        if path.exists():
            shutil.copymode(path, aside)
        if durable:
            flush(aside)
        os.replace(aside, path)
        if durable:
            flush_name(path)
    except BaseException:
        _remove(aside)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace a text file (UTF-8), or leave the old one."""
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def put_in_place(aside: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Let the complete folder `aside` take the place of `folder` on the same file system, in one step where the system knows
    how to exchange two names (Linux); elsewhere `folder` is missing between two renamings."""
    aside, folder = Path(aside), Path(folder)
    flush(aside)
    if not folder.exists():
        os.rename(aside, folder)
    elif _exchange(aside, folder):
        flush_name(folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        remove_folder(folder)
        os.rename(aside, folder)
    flush_name(folder)


def flush_name(path: str | os.PathLike) -> None:
    """Have the entry of a file or folder in its parent written to the disk."""
    parent = Path(os.path.abspath(path)).parent
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # not every file system can; the renaming itself is done
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step. Returns whether the system can."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    return done == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock_folder(folder: str | os.PathLike, wait: bool = False) -> int | None:
    """A lock that lasts until the descriptor is closed or the process ends; `None` where the system or the file system has none.

    Args:
        wait: for its end, where another process has it.

    Raises:
        BlockingIOError: another process (or another descriptor) has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
