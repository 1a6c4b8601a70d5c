"""Ternary, int8 and int4 matrix products as torch operators: on CPUs over the native library, elsewhere in plain torch."""

from __future__ import annotations

from typing import Any

from . import backends as _backends  # noqa: F401 (registers who computes)
from . import binding as _native
from .binding import NativeLibraryError, UnsupportedISAError
from .operators import MAX_COLUMNS, _ops, num_threads, set_num_threads
from .stored import stored_table_embedding, stored_table_linear, stored_ternary_linear
from .table_packing import SplitPacker, TablePacker, pack_codes, pack_table
from .training_passes import NativePasses, normalize, normalize_backward


ternary_pack = _ops.ternary_pack
int8_pack = _ops.int8_pack
int4_pack = _ops.int4_pack
packed_linear = _ops.packed_linear
packed_embedding = _ops.packed_embedding
packed_matmul_int32 = _ops.packed_matmul_int32
quantize_activations = _ops.quantize_activations


def status() -> dict[str, Any]:
    """What computes: `loaded`, `path`, `version`, `isa`, `supported_isas`, `threads`, whether they are those that torch's
    own operators run on (`shares_torch_threads`), and `reason` if not loaded.

    Never raises, never warns.
    """
    try:
        library, reason = _native.load()
        isa = library.isa if library is not None else None
    except NativeLibraryError as error:
        library, isa, reason = None, None, str(error)
    return {
        "loaded": library is not None,
        "path": str(_native.default_path()),
        "version": library.version if library is not None else None,
        "isa": isa,
        "supported_isas": library.supported_isas if library is not None else [],
        "threads": num_threads(),
        "shares_torch_threads": library is not None and library.shares_torch_threads,
        "reason": reason,
    }


__all__ = [
    "MAX_COLUMNS",
    "NativeLibraryError",
    "NativePasses",
    "SplitPacker",
    "TablePacker",
    "UnsupportedISAError",
    "int4_pack",
    "int8_pack",
    "normalize",
    "normalize_backward",
    "num_threads",
    "pack_codes",
    "pack_table",
    "packed_embedding",
    "packed_linear",
    "packed_matmul_int32",
    "quantize_activations",
    "set_num_threads",
    "status",
    "stored_table_embedding",
    "stored_table_linear",
    "stored_ternary_linear",
    "ternary_pack",
]
