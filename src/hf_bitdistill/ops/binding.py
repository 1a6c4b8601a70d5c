"""Finds and loads the native library, and calls its C functions (`c_header.py`)."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable
from ctypes import c_char_p, c_double, c_int, c_size_t, c_void_p
from pathlib import Path

import torch

from .c_header import (
    ABI_VERSION,
    ERROR_ISA,
    ERROR_OUT_OF_MEMORY,
    MAX_THREADS,
    SIGNATURES,
    WeightInfo,
    check_layout,
    read_layout,
)


#: "0" or "1": whether ternary weights get the dense form, whatever a measurement says.
DENSE_SWITCH = "HF_BITDISTILL_DENSE"
_FEWEST_DENSE_WEIGHTS = 1 << 18

_LIBRARY_NAMES = {"win32": "bitdistill.dll", "darwin": "libbitdistill.dylib"}

_BUILD_AGAIN = "install the package again (in a checkout: pip install -e .), or unset HF_BITDISTILL_LIBRARY"


class NativeLibraryError(RuntimeError):
    """The native library is missing, does not fit this package, or refused a call."""


class UnsupportedISAError(NativeLibraryError):
    """`HF_BITDISTILL_ISA` asks for an instruction set that cannot be used here."""


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
        NativeLibraryError: no such file, not loadable, or built from another `csrc/bitdistill.h`; says what differs.
        UnsupportedISAError: `HF_BITDISTILL_ISA` names an instruction set that cannot run here.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise NativeLibraryError(f"{path} does not exist (the package was built without its native library)")
        try:
            self._library = ctypes.CDLL(str(path))
            abi = self._library.bd_abi_version()
        except (OSError, AttributeError) as error:
            raise NativeLibraryError(f"{path} cannot be loaded: {error}") from None
        if abi != ABI_VERSION:
            raise NativeLibraryError(f"{path} has ABI version {abi}, this package needs {ABI_VERSION}; {_BUILD_AGAIN}")
        functions = self._declare()
        try:
            check_layout(read_layout(self._library))
        except ValueError as error:
            raise NativeLibraryError(f"{path} was built from another bitdistill.h: {error}; {_BUILD_AGAIN}") from None
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

    def _declare(self) -> dict[str, Callable]:
        """The functions by their names, with the types of their arguments."""
        functions = {}
        for name, (result, arguments) in SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise NativeLibraryError(f"{self.path} has no function {name}; {_BUILD_AGAIN}") from None
            function.argtypes, function.restype = arguments, result
            functions[name] = function
        return functions

    def status(self, name: str, *args) -> int:
        """Call `bd_<name>` and leave its status to the caller."""
        return self._functions[f"bd_{name}"](*args)

    def check(self, status: int, what: str) -> None:
        """Raise for a status that is not success: `MemoryError` if that is what it means, else [`NativeLibraryError`]."""
        if status == ERROR_OUT_OF_MEMORY:
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
        if status == ERROR_ISA:
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

    def packs_densely(self, rows: int, columns: int) -> bool:
        """Whether a ternary matrix gets the form of five weights in a byte, with the instruction set in use: where a measurement of a tenth of
        a second, once a process, finds it no slower. Never a small one: models of these fit the processor's caches, and reading is not
        their limit. `HF_BITDISTILL_DENSE=0` or `1` says it without."""
        said = os.environ.get(DENSE_SWITCH)
        if said in ("0", "1"):
            return said == "1"
        if rows * columns < _FEWEST_DENSE_WEIGHTS:
            return False
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
