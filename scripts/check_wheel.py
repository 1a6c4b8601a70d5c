"""Whether an installed wheel brings native kernels that this machine can run. Needs neither torch nor a compiler.

    python scripts/check_wheel.py

Multiplies a small packed matrix by the library's own functions and compares with plain Python.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import random
import sys


ROWS, COLUMNS, TOKENS = 37, 130, 3


def check(library: ctypes.CDLL, name: str) -> None:
    """The integer product of one instruction set."""
    numbers = random.Random(0)
    weight, x = ([numbers.randint(-127, 127) for _ in range(count * COLUMNS)] for count in (ROWS, TOKENS))
    size = ctypes.c_size_t()
    wide = ctypes.c_int64
    packed_size = library.bd_int8_packed_size(wide(ROWS), wide(COLUMNS), ctypes.byref(size))
    # 64 bytes of room, for the alignment that a packed weight wants.
    room = ctypes.create_string_buffer(size.value + 64)
    packed = ctypes.c_void_p((ctypes.addressof(room) + 63) // 64 * 64)
    weights, scales = (ctypes.c_int8 * len(weight))(*weight), (ctypes.c_float * ROWS)(*[1.0] * ROWS)
    status = (
        library.bd_set_isa(name.encode()),
        packed_size,
        library.bd_int8_pack(weights, ctypes.c_size_t(len(weight)), wide(ROWS), wide(COLUMNS), scales, ctypes.c_size_t(ROWS), packed, size),
    )  # fmt: skip
    found = (ctypes.c_int32 * (TOKENS * ROWS))()
    inputs = (ctypes.c_int8 * len(x))(*x)
    status += (
        library.bd_matmul_int32(packed, size, inputs, ctypes.c_size_t(len(x)), wide(TOKENS), found, ctypes.c_size_t(len(found))),
    )  # fmt: skip
    expected = [
        sum(weight[row * COLUMNS + column] * x[token * COLUMNS + column] for column in range(COLUMNS))
        for token in range(TOKENS)
        for row in range(ROWS)
    ]
    if any(status) or list(found) != expected:
        sys.exit(f"{name}: wrong product (status {status})")


def main() -> None:
    files = importlib.metadata.files("hf-bitdistill") or []
    found = [file for file in files if file.name.startswith("libbitdistill.")]
    if not found:
        sys.exit("the wheel has no native library")
    library = ctypes.CDLL(str(found[0].locate()))
    library.bd_version.restype = ctypes.c_char_p
    library.bd_supported_isas.restype = ctypes.POINTER(ctypes.c_char_p)
    names = library.bd_supported_isas()
    isas = [name.decode() for name in itertools.takewhile(bool, (names[index] for index in itertools.count()))]
    for name in isas:
        check(library, name)
    print(
        f"{found[0]}: version {library.bd_version().decode()}, ABI {library.bd_abi_version()}, right in {', '.join(isas)}"
    )


if __name__ == "__main__":
    main()
