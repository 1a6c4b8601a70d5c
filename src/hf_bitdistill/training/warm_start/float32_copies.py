"""What an optimiser trains in the place of 16-bit parameters."""

from __future__ import annotations

import torch
from torch import nn


class Float32Copies:
    """Of 16-bit parameters: a step of 1e-3 near 1 is less than half the distance of two numbers of bfloat16, which would round it away.
    Wider parameters stand for themselves."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.copies = [nn.Parameter(p.detach().float()) if p.dtype.itemsize == 2 else p for p in parameters]
        self._pairs = [(p, copy) for p, copy in zip(parameters, self.copies, strict=True) if p is not copy]

    def take_gradients(self) -> None:
        """Move the gradients of the parameters to their copies."""
        for parameter, copy in self._pairs:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the parameters the values of their copies."""
        for parameter, copy in self._pairs:
            parameter.copy_(copy)
