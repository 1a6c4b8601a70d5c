"""Where the hidden states of all batches wait between the windows: in memory, or in a file that goes with the process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ...files.disk_room import check_room
from ...machine.environment import free_memory


Where = Literal["auto", "memory", "disk"]

# Share of the free memory that hidden states may take before they go to a file.
_MEMORY_SHARE = 0.5


def hidden_states_folder(where: Where, folder: Path | None, needed: int, of_all: int) -> Path | None:
    """Where the file is made; `None`: none is, they are kept in memory.

    Args:
        where: `"auto"`: in memory if they take no more than half of what is free, or if there is no folder.
        folder: for the file.
        needed: bytes on this machine.
        of_all: bytes of all processes, which may share the folder.

    Raises:
        ValueError: `where` is unknown, or `"disk"` without a folder.
        OSError: there is too little room in the folder.
    """
    if where not in ("auto", "memory", "disk"):
        raise ValueError(f"hidden_states={where!r} is not supported; choose one of ('auto', 'memory', 'disk')")
    if where == "disk" and folder is None:
        raise ValueError("hidden_states='disk' needs a folder: give scratch, or a checkpoint")
    fits = where == "memory" or (
        where == "auto" and (folder is None or needed <= _MEMORY_SHARE * free_memory(torch.device("cpu")))
    )
    if not fits and folder is not None:
        check_room(folder, {"the hidden states of the warm start": of_all})
    return None if fits else folder


class HiddenStates:
    """Makes [`Slot`]s. Close it at the end.

    The file is read and written a batch at a time and not mapped: mapped pages would count as memory of the process, and a disk that
    fills up would kill it without a word. It has no name where the system can do without, so that nothing is left of it however the
    process ends.

    Args:
        folder: where the file is made; `None`: everything stays in memory.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._file: Any = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, prefix="_hidden_states.tmp-", buffering=0)  # noqa: SIM115
        self._end = 0

    def slot(self) -> Slot:
        return Slot(self)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, data: memoryview, offset: int | None) -> int:
        """Write at an offset of the file, or at its end. Returns where it is."""
        if offset is None:
            offset, self._end = self._end, self._end + data.nbytes
        try:
            self._file.seek(offset)
            while data.nbytes:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise type(error)(
                error.errno,
                f"cannot keep the hidden states of the warm start in {self.folder}: {error.strerror or error}",
            ) from error
        return offset

    def read(self, data: memoryview, offset: int) -> None:
        """Fill `data` from an offset of the file."""
        self._file.seek(offset)
        while data.nbytes:
            count = self._file.readinto(data)
            if not count:
                raise OSError(f"the file of hidden states in {self.folder} was cut off")
            data = data[count:]


class Slot:
    """Holds one tensor at a time, on the CPU or in the file: what is read has the values, shape and dtype of what was written."""

    def __init__(self, states: HiddenStates):
        self._states = states
        self._value: Any = None
        # In the file: where, and for how many bytes there is room.
        self._offset: int | None = None
        self._size = 0

    def write(self, value: Tensor) -> None:
        """Of any shape and dtype, on any device."""
        value = value.detach().cpu().contiguous()
        if self._states._file is None:
            self._value = value
            return
        data = _bytes(value)
        if data.nbytes > self._size:
            self._offset, self._size = None, data.nbytes
        self._offset = self._states.write(data, self._offset)
        self._value = (value.shape, value.dtype)

    def read(self) -> Tensor:
        """On the CPU. Not to be changed in place."""
        if self._states._file is None:
            return self._value
        value = torch.empty(self._value[0], dtype=self._value[1])
        self._states.read(_bytes(value), cast(int, self._offset))
        return value


def _bytes(value: Tensor) -> memoryview:
    return value.view(-1).view(torch.uint8).numpy().data
