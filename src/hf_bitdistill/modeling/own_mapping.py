"""Tensors of a checkpoint that are only read to make others of them, through mappings of their own.

transformers maps a file and keeps it for as long as a tensor of it is in use; every page that was read counts as memory of the process until
then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..files.tensor_headers import TensorHeader, read_header


class OwnMapping:
    """Gives bytes of a file again, in memory that is unmapped when the tensor is dropped.

    Args:
        headers: gives the headers of the tensors by their names in the model; empty where they come from memory.
    """

    def __init__(self, headers: Callable[[], dict[str, TensorHeader]]):
        self._headers = headers
        self._starts: dict[str, dict[str, int]] = {}

    def read(self, name: str, loaded: Tensor) -> Tensor:
        """What `loaded`, a tensor as transformers gives it, holds: `loaded` itself unless it is a whole uint8 tensor of a file, on the CPU."""
        header = self._headers().get(name)
        if header is None or loaded.dtype != torch.uint8 or loaded.device.type != "cpu":
            return loaded
        if header.shape != tuple(loaded.shape):
            return loaded
        start = self._start(header)
        return torch.from_file(header.file, size=start + loaded.numel(), dtype=torch.uint8)[start:].view(loaded.shape)

    def _start(self, header: TensorHeader) -> int:
        if header.file not in self._starts:
            entries, first = read_header(header.file)
            self._starts[header.file] = {
                key: first + entry["data_offsets"][0] for key, entry in entries.items() if key != "__metadata__"
            }
        return self._starts[header.file][header.key]
