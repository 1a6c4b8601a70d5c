"""The native library, which most of what is measured here is about."""

from __future__ import annotations

from hf_bitdistill.ops import native


def load() -> native.NativeLibrary:
    """The library of this environment.

    Raises:
        SystemExit: it is not loaded; says why.
    """
    library, reason = native.load()
    if library is None:
        raise SystemExit(f"the native library is not loaded: {reason}")
    return library
