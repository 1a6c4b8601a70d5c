"""Memory that is freed and wanted again at once: the C library gives large blocks back to the system, which clears every page it hands out
anew. A training on a CPU frees and wants the same blocks every step (`benchmarks/bench_training.py` measures what that costs)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator


# `mallopt`'s parameters (malloc.h of the GNU C library).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# No block of its own mapping, nothing given back; and where glibc's own adjustment ends on 64 bits, with as many mappings as it allows.
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_GIVE_BACK = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

_inside = 0


def _library() -> ctypes.CDLL | None:
    """The GNU C library, unless its user has set how it keeps memory, or another allocator stands in its place."""
    if platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return None
    if any(name.startswith("MALLOC_") for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextlib.contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[bool]:
    """The C library keeps what is freed inside, and gives it back at the end. May be nested.

    Nothing is done, and nothing changes but the time it takes, where the library is another one or where the environment says how it
    allocates (`MALLOC_*`, `GLIBC_TUNABLES`, `LD_PRELOAD`).

    Args:
        wanted: whether to; an accelerator's memory has an allocator of its own.

    Returns:
        Whether it does.
    """
    global _inside
    library = _library() if wanted else None
    if library is None:
        yield False
        return
    _inside += 1
    try:
        if _inside == 1:
            for parameter, value in _KEEP.items():
                library.mallopt(parameter, value)
        yield True
    finally:
        _inside -= 1
        if not _inside:
            for parameter, value in _GIVE_BACK.items():
                library.mallopt(parameter, value)
            library.malloc_trim(0)
