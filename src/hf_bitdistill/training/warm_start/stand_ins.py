"""Which ternary layers of the student have a stand-in, and where those are put."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ...nn import BitLinear
from .config import WarmStartConfig
from .relaxation import RelaxedBitLinear


class StandIns:
    """One [`RelaxedBitLinear`] for each ternary layer of the windows that are not left yet.

    Args:
        layers: the student's.
        config: how a stand-in begins.
        generator: of its low-rank start.
        recompute: weights are computed again in the backward pass.
    """

    def __init__(self, layers: nn.ModuleList, config: WarmStartConfig, generator: torch.Generator, recompute: bool):
        self._layers, self._config, self._generator, self._recompute = layers, config, generator, recompute
        # (layer index, name in the layer) -> stand-in
        self._found: dict[tuple[int, str], RelaxedBitLinear] = {}

    def _new(self, layer: BitLinear, generator: torch.Generator) -> RelaxedBitLinear:
        config = self._config
        stand_in = RelaxedBitLinear(layer, config.rank, config.factor_group_size, config.start, generator)
        stand_in.recompute = self._recompute
        return stand_in

    @contextmanager
    def put_in(self, first: int, last: int) -> Iterator[list[RelaxedBitLinear]]:
        """Layers `first` to `last - 1` compute with their stand-ins while it lasts. Those that a window before has trained go on where
        they were."""
        try:
            yield [stand_in for index in range(first, last) for stand_in in self._put_in(index)]
        finally:
            for (index, name), stand_in in self._found.items():
                self._layers[index].set_submodule(name, stand_in.layer)

    def _put_in(self, index: int) -> Iterator[RelaxedBitLinear]:
        layer = self._layers[index]
        for name, module in list(layer.named_modules()):
            if isinstance(module, BitLinear) and (index, name) not in self._found:
                self._found[index, name] = self._new(module, self._generator)
        for (owner, name), stand_in in self._found.items():
            if owner == index:
                layer.set_submodule(name, stand_in)
                yield stand_in

    def leave(self, last: int) -> None:
        """Forget those of layers below `last`, which no window trains again: what they have learned is folded."""
        self._found = {key: stand_in for key, stand_in in self._found.items() if key[0] >= last}

    def state(self) -> dict[tuple[int, str], dict[str, Tensor]]:
        """For a checkpoint."""
        return {key: stand_in.own_tensors() for key, stand_in in self._found.items()}

    @torch.no_grad()
    def load(self, state: Mapping[tuple[int, str], Mapping[str, Tensor]]) -> None:
        """Of the layers as they are now, with the values of [`state`]."""
        for (index, name), tensors in state.items():
            layer = cast(BitLinear, self._layers[index].get_submodule(name))
            stand_in = self._new(layer, torch.Generator())
            for key, value in stand_in.own_tensors().items():
                value.copy_(tensors[key])
            self._found[index, name] = stand_in
