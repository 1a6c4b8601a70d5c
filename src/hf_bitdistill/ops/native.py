"""Finds and loads the native library, and declares its C functions (`csrc/bitdistill.h`)."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch


ABI_VERSION = 7
ALIGNMENT = 64
MAX_THREADS = 256
"""`BD_MAX_THREADS`: more are refused. Nothing here gains by as many."""

#: "0" or "1": whether ternary weights get the dense form, whatever a measurement says.
DENSE_SWITCH = "HF_BITDISTILL_DENSE"

FLOAT32, BFLOAT16 = 0, 1
TERNARY, INT8, INT4, TERNARY_DENSE = 0, 1, 2, 3
TABLE_PACKED, TABLE_FLOAT32, TABLE_BFLOAT16, TABLE_FLOAT16, TABLE_SPLIT = 0, 1, 2, 3, 4
ERROR_ARGUMENT, ERROR_SCALE = 5, 7
_ERROR_ISA, _ERROR_OUT_OF_MEMORY = 10, 11

_LIBRARY_NAMES = {"win32": "bitdistill.dll", "darwin": "libbitdistill.dylib"}

# Pointers are passed as plain addresses (`Tensor.data_ptr()`): building typed pointers costs more than small layers do.
_SIGNATURES = {
    "bd_get_isa": [POINTER(c_char_p)],
    "bd_set_isa": [c_char_p],
    "bd_set_num_threads": [c_int],
    "bd_set_team": [c_void_p],
    "bd_ternary_packed_size": [c_int64, c_int64, c_int64, c_size_t, c_int, POINTER(c_size_t)],
    "bd_ternary_pack": [c_void_p, c_size_t, c_int64, c_int64, c_void_p, c_size_t, c_int64]
    + [c_void_p, c_size_t, c_void_p, c_size_t],
    "bd_ternary_from_dense": [c_void_p, c_size_t, c_int64, c_int64, c_void_p, c_size_t],
    "bd_ternary_dense_is_fast": [POINTER(c_int)],
    "bd_ternary_dense_size": [c_void_p, c_size_t, POINTER(c_size_t)],
    "bd_ternary_dense_pack": [c_void_p, c_size_t, c_void_p, c_size_t],
    "bd_int8_packed_size": [c_int64, c_int64, POINTER(c_size_t)],
    "bd_int8_pack": [c_void_p, c_size_t, c_int64, c_int64, c_void_p, c_size_t, c_void_p, c_size_t],
    "bd_int4_packed_size": [c_int64, c_int64, c_int, POINTER(c_size_t)],
    "bd_int4_pack": [c_void_p, c_size_t, c_int64, c_int64, c_void_p, c_size_t, c_int, c_void_p, c_size_t],
    "bd_weight_describe": [c_void_p, c_size_t, c_void_p],
    "bd_linear": [c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_int64, c_void_p, c_size_t, c_float]
    + [c_void_p, c_size_t, c_void_p, c_size_t],
    "bd_embedding": [c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t],
    "bd_quantize_activations": [c_void_p, c_size_t, c_int, c_int64, c_int64, c_void_p, c_size_t, c_float]
    + [c_void_p, c_size_t, c_void_p, c_size_t],
    "bd_matmul_int32": [c_void_p, c_size_t, c_void_p, c_size_t, c_int64, c_void_p, c_size_t],
    "bd_table_pack_rows": [c_int, c_void_p, c_size_t, c_int] + [c_int64] * 4 + [c_void_p, c_size_t],
    "bd_split_size": [c_int64, c_int64, POINTER(c_size_t)],
    "bd_split_pack": [c_void_p, c_size_t] * 3,
    "bd_split_linear": [c_void_p, c_size_t, c_void_p, c_size_t, c_int64, c_int, c_void_p, c_size_t],
    "bd_measure_read_bandwidth": [c_void_p, c_size_t, c_int, POINTER(c_double)],
    "bd_measure_multiply_add": [c_int, POINTER(c_double)],
}


class NativeLibraryError(RuntimeError):
    """The native library is missing, does not fit this package, or refused a call."""


class UnsupportedISAError(NativeLibraryError):
    """`HF_BITDISTILL_ISA` asks for an instruction set that cannot be used here."""


class WeightInfo(ctypes.Structure):
    """`bd_weight_info`."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("scale_is_f16", ctypes.c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group_size", c_int64),
        ("groups", c_int64),
        ("tensor_scale", ctypes.c_int32),
        ("has_row_offset", ctypes.c_int32),
    ]


def default_path() -> Path:
    """Where the library is: `HF_BITDISTILL_LIBRARY`, or in this package (an editable install has two folders)."""
    override = os.environ.get("HF_BITDISTILL_LIBRARY")
    if override:
        return Path(override)
    name = _LIBRARY_NAMES.get(sys.platform, "libbitdistill.so")
    candidates = [Path(folder) / name for folder in sys.modules[__package__].__path__]
    return next((path for path in candidates if path.is_file()), Path(__file__).with_name(name))


class NativeLibrary:
    """The loaded library. Its functions are attributes that raise [`NativeLibraryError`] instead of returning a code.

    Args:
        path: the shared library.

    Raises:
        NativeLibraryError: no such file, not loadable, or another ABI.
        UnsupportedISAError: `HF_BITDISTILL_ISA` names an instruction set that cannot run here.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise NativeLibraryError(f"{path} does not exist (the package was built without its native library)")
        try:
            self._library = ctypes.CDLL(str(path))
            self._library.bd_strerror.restype = c_char_p
            self._library.bd_strerror.argtypes = [c_int]
            self._library.bd_version.restype = c_char_p
            self._library.bd_supported_isas.restype = POINTER(c_char_p)
            abi = self._library.bd_abi_version()
            functions = {name: getattr(self._library, name) for name in _SIGNATURES}
        except (OSError, AttributeError) as error:
            raise NativeLibraryError(f"{path} cannot be loaded: {error}") from None
        if abi != ABI_VERSION:
            raise NativeLibraryError(f"{path} has ABI version {abi}, this package needs {ABI_VERSION}")
        for name, function in functions.items():
            function.argtypes = _SIGNATURES[name]
            function.restype = c_int
        self.linear = functions["bd_linear"]  # the hot one: its status is checked where it is called
        self._functions = functions
        self._threads = 0
        self.shares_torch_threads = self._share_torch_threads()
        self.isa  # noqa: B018 - fails now rather than in the first product

    def _share_torch_threads(self) -> bool:
        """Compute on the OpenMP threads that torch's own operators run on.

        Two pools of threads on the same CPUs would be in each other's way: OpenMP's spin for milliseconds after each
        operator of torch. `HF_BITDISTILL_OPENMP=0` keeps the library's own threads.
        """
        if os.environ.get("HF_BITDISTILL_OPENMP") == "0" or not torch.backends.openmp.is_available():
            return False
        name = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
        try:
            # A symbol is looked up in the dependencies of a library, too: this is the run-time library that torch uses.
            team = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
        except (OSError, AttributeError):  # another OpenMP, or none
            return False
        self.call("set_team", ctypes.cast(team, c_void_p))
        return True

    def declare(self, signatures: dict[str, list]) -> None:
        """Add functions, for [`call`] and [`size`]: `bd_name` -> types of its arguments.

        Raises:
            NativeLibraryError: the library has no such function.
        """
        for name, arguments in signatures.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise NativeLibraryError(
                    f"{self.path} has no function {name}: it was built from older sources, build it again"
                ) from None
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function

    def status(self, name: str, *args) -> int:
        """Call `bd_<name>` and leave its status to the caller."""
        return self._functions[f"bd_{name}"](*args)

    def check(self, status: int, what: str) -> None:
        """Raise for a status that is not success: `MemoryError` if that is what it means, else [`NativeLibraryError`]."""
        if status == _ERROR_OUT_OF_MEMORY:
            raise MemoryError(f"{what}: {self._library.bd_strerror(status).decode()}")
        if status != 0:
            raise NativeLibraryError(f"{what}: {self._library.bd_strerror(status).decode()}")

    def call(self, name: str, *args) -> None:
        """Call `bd_<name>` and check its status."""
        self.check(self._functions[f"bd_{name}"](*args), name)

    def size(self, name: str, *args) -> int:
        """Call a function whose last argument receives a size."""
        result = c_size_t()
        self.call(name, *args, ctypes.byref(result))
        return result.value

    @property
    def version(self) -> str:
        return self._library.bd_version().decode()

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        name = c_char_p()
        status = self._functions["bd_get_isa"](ctypes.byref(name))
        if status == _ERROR_ISA:
            raise UnsupportedISAError(
                f"HF_BITDISTILL_ISA={os.environ.get('HF_BITDISTILL_ISA')!r} cannot be used here; "
                f"possible: {', '.join(self.supported_isas)}"
            )
        self.check(status, "get_isa")
        return (name.value or b"").decode()

    @property
    def supported_isas(self) -> list[str]:
        """Instruction sets that this build has and this CPU can run, best first."""
        names = self._library.bd_supported_isas()
        result: list[str] = []
        while names[len(result)] is not None:
            result.append(names[len(result)].decode())
        return result

    def set_isa(self, name: str) -> None:
        self.call("set_isa", name.encode())

    @property
    def threads(self) -> int:
        return self._library.bd_get_num_threads()

    def set_threads(self, threads: int) -> None:
        """Threads a call may use, at most [`MAX_THREADS`]. Cheap when nothing changes."""
        threads = min(threads, MAX_THREADS)
        if threads != self._threads:
            self.call("set_num_threads", threads)
            self._threads = threads

    @property
    def packs_densely(self) -> bool:
        """Whether ternary weights get the form of five in a byte, with the instruction set in use: where a measurement of a few
        milliseconds, once a process, finds it no slower. `HF_BITDISTILL_DENSE=0` or `1` says it without."""
        said = os.environ.get(DENSE_SWITCH)
        if said in ("0", "1"):
            return said == "1"
        fast = c_int()
        self.call("ternary_dense_is_fast", ctypes.byref(fast))
        return fast.value != 0

    def describe(self, address: int, size: int) -> WeightInfo:
        """Header of a packed weight."""
        info = WeightInfo()
        self.call("weight_describe", address, size, ctypes.byref(info))
        return info

    def read_bandwidth(self, address: int, size: int, repeats: int = 1) -> float:
        """Bytes a second read from a buffer, on all threads."""
        result = c_double()
        self.call("measure_read_bandwidth", address, size, repeats, ctypes.byref(result))
        return result.value

    def multiply_add_rate(self, repeats: int = 1) -> float:
        """int8 multiply-adds a second of the instructions of the ternary matrix product, on all threads."""
        result = c_double()
        self.call("measure_multiply_add", repeats, ctypes.byref(result))
        return result.value


@functools.cache
def load() -> tuple[NativeLibrary | None, str | None]:
    """The library, or `None` and the reason why there is none. Loads once a process.

    Raises:
        UnsupportedISAError: an explicit wish that cannot be met is an error, not a reason to be slow.
    """
    if os.environ.get("HF_BITDISTILL_NATIVE") == "0":
        return None, "switched off by HF_BITDISTILL_NATIVE=0"
    try:
        return NativeLibrary(default_path()), None
    except UnsupportedISAError:
        raise
    except NativeLibraryError as error:
        return None, str(error)


@functools.cache
def library() -> NativeLibrary | None:
    """[`load`] for the operators: warns, once, that they will be slow."""
    native, reason = load()
    if native is None:
        warnings.warn(f"hf_bitdistill computes with plain torch operators, which is slow: {reason}.", stacklevel=2)
    return native
