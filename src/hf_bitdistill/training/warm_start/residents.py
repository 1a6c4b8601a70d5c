"""Which layers of a model are on the device that computes. The others stay where they were loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...files.disk_room import parameter_bytes
from ...machine.environment import free_memory
from .decoder_layers import decoder_layers


# Of the free memory of a device, what models and the training of a window may take; and bytes of such a training for each weight: its
# value at the start, what the softened function leaves for the backward pass, the weight that is multiplied with.
_MEMORY_SHARE, _TRAINED_WEIGHT = 0.7, 30


def lies_on(tensor: Tensor, device: torch.device) -> bool:
    """Whether nothing has to be moved."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def fit_whole(teacher: PreTrainedModel, window_layers: int, device: torch.device) -> bool:
    """Whether teacher and student can lie on a device while a window is trained there."""
    if device.type == "cpu":
        return True
    layers = decoder_layers(teacher)
    weights = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    window = weights * min(window_layers, len(layers)) // len(layers)
    return 2 * parameter_bytes(teacher) + _TRAINED_WEIGHT * window <= _MEMORY_SHARE * free_memory(device)


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


class Residents:
    """Brings layers of a model to a device and back. A parameter stays the object it is; only where its values lie changes.

    Where everything is on the device already, it does nothing.

    Args:
        model: what lies elsewhere now is brought when it is wanted, and sent back there.
        device: that computes.
        changes: what comes back may have changed. Otherwise the values that were left behind hold again, so that what is mapped from a
            file stays mapped.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, changes: bool):
        self.layers = decoder_layers(model)
        self.device, self.changes = device, changes
        # (The tensors too, so that no other object gets their ids.)
        self._elsewhere = {key: tensor for key, tensor in _tensors(model).items() if not lies_on(tensor, device)}
        in_layers = set().union(*(_tensors(layer) for layer in self.layers))
        self._rest = {key: tensor for key, tensor in self._elsewhere.items() if key not in in_layers}
        self._homes: dict[int, Tensor] = {}

    @property
    def all_there(self) -> bool:
        """Whether the whole model is on the device for good."""
        return not self._elsewhere

    def only(self, layers: Iterable[nn.Module] = ()) -> None:
        """Have these layers on the device, and nothing else."""
        if self._elsewhere:
            self._have({key: tensor for layer in layers for key, tensor in _tensors(layer).items()})

    @contextmanager
    def holding(self, first: int, last: int) -> Iterator[None]:
        """Have layers `first` to `last - 1` on the device while it lasts, and nothing else; nothing afterwards."""
        try:
            self.only(self.layers[first:last])
            yield
        finally:
            self.only()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While it lasts the model can be called on the device: each layer is there while it computes, all else throughout."""
        if not self._elsewhere:
            yield
            return

        def bring(layer: nn.Module, _) -> None:
            self._have({**self._rest, **_tensors(layer)})

        with ExitStack() as stack:
            stack.callback(self.only)
            self._have(self._rest)
            for layer in self.layers:
                stack.callback(layer.register_forward_pre_hook(bring).remove)
            yield

    @torch.no_grad()
    def _have(self, wanted: Mapping[int, Tensor]) -> None:
        # Back first: the two sets need not fit side by side.
        for key in [key for key in self._homes if key not in wanted]:
            tensor, home = self._elsewhere[key], self._homes.pop(key)
            if self.changes:
                value = tensor.data.to(home.device)
                # Writing what is there already would make a copy of pages that are mapped from a file.
                if not torch.equal(home, value):
                    home.copy_(value)
            tensor.data = home
        for key, tensor in wanted.items():
            if key in self._elsewhere and key not in self._homes:
                self._homes[key] = tensor.data
                tensor.data = tensor.data.to(self.device, copy=True)
