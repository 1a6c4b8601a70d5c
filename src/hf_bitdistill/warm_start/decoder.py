"""The decoder layers of a model, and calls of single layers as the model itself would make them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distillation.attention_states import number_of_layers
from ..distillation.teacher import model_inputs
from ..surgery import SurgeryError


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the one list in the model with as many entries as the config has layers.

    Raises:
        SurgeryError: there is none, or more than one; names the lists there are.
    """
    depth = number_of_layers(model)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    # Lists inside a layer (experts, say) may have the same length by chance.
    fitting = [
        name
        for name, module in lists.items()
        if len(module) == depth and not any(name.startswith(f"{outer}.") for outer in lists)
    ]
    if len(fitting) != 1:
        there = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise SurgeryError(
            f"{type(model).__name__}: cannot tell which modules are its {depth} decoder layers; module lists in it: {there}."
        )
    return lists[fitting[0]]


@dataclass
class LayerCall:
    """Everything but the hidden states with which a model calls one layer."""

    args: tuple
    kwargs: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's hidden states, `[B, T, d]` -> `[B, T, d]`."""
        output = layer(hidden, *self.args, **self.kwargs)
        return output if isinstance(output, Tensor) else output[0]


class _Stop(Exception):
    """Raised in a hook to leave a forward pass that has shown what it was run for."""


class CallRecorder:
    """Records how a model calls its decoder layers, batch by batch.

    Rotary tables and masks are the same for all batches of equal shape; they are kept once.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.layers = decoder_layers(model)
        self._known: dict[tuple, Tensor] = {}

    def _intern(self, value: Any, key: tuple) -> Any:
        if isinstance(value, Tensor):
            value = value.detach()
            known = self._known.setdefault((*key, tuple(value.shape)), value)
            return known if known.dtype == value.dtype and torch.equal(known, value) else value
        if isinstance(value, tuple):
            return tuple(self._intern(item, (*key, index)) for index, item in enumerate(value))
        return value

    @torch.no_grad()
    def record(self, batch: Mapping[str, Any], only_first: bool = False) -> tuple[Tensor, list[LayerCall]]:
        """The first layer's input `[B, T, d]` and, unless `only_first`, the calls of all layers for one batch on the model's device."""
        first: list[Tensor] = []
        calls: list[LayerCall] = []

        def observe(index: int):
            def hook(_, args, kwargs):
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if index == 0:
                    first.append(hidden.detach())
                    if only_first:
                        raise _Stop
                kept = {name: self._intern(value, (index, name)) for name, value in kwargs.items()}
                calls.append(LayerCall(tuple(self._intern(v, (index, i)) for i, v in enumerate(args[1:])), kept))

            return hook

        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                stack.callback(layer.register_forward_pre_hook(observe(index), with_kwargs=True).remove)
            stack.enter_context(suppress(_Stop))
            # The body only: nobody looks at the logits.
            self.model.base_model(**model_inputs(self.model.base_model, batch, None))
        if not only_first and len(calls) != len(self.layers):
            raise SurgeryError(
                f"{type(self.model).__name__} called {len(calls)} of its {len(self.layers)} decoder layers: a warm start "
                "needs a model that calls each of them once, in order."
            )
        return first[0], calls
