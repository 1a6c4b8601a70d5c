"""The native library, which most of what is measured here is about."""

from __future__ import annotations

from hf_bitdistill.ops import binding


def load() -> binding.NativeLibrary:
    """The library of this environment.

    Raises:
        SystemExit: it is not loaded; says why.
    """
    library, reason = binding.load()
    if library is None:
        raise SystemExit(f"the native library is not loaded: {reason}")
    return library
