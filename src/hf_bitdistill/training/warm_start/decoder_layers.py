"""The decoder layers of a model, and calls of single layers as the model itself would make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...modeling.surgery import SurgeryError
from ..losses.attention_states import number_of_layers
from ..teacher.teacher_model import model_inputs


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
    # Whether tensors of one batch alone, a mask of its padding say, wait on the CPU.
    is_away: bool = False

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's hidden states, `[B, T, d]` -> `[B, T, d]`."""
        args, kwargs = self.args, self.kwargs
        if self.is_away:
            args, kwargs = (_each(value, lambda tensor: tensor.to(hidden.device)) for value in (args, kwargs))
        return _hidden_of(layer(hidden, *args, **kwargs))


def _hidden_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with each tensor in it, in tuples and dictionaries too, changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is tuple:
        return tuple(_each(item, change) for item in value)
    if type(value) is dict:
        return {name: _each(item, change) for name, item in value.items()}
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return one is other or bool(one == other)


_UNKNOWN = "unknown"


def _form(output: Any) -> Any:
    """What a layer returns around its hidden states: `None` for a tensor, the tuple or list with nothing in it, or `_UNKNOWN`."""
    if isinstance(output, Tensor):
        return None
    is_empty = type(output) in (tuple, list) and all(item is None for item in output[1:])
    return type(output)([None] * len(output)) if is_empty else _UNKNOWN


class _Stop(Exception):
    """Raised in a hook to leave a forward pass that has shown what it was run for."""


class _Passes(nn.Module):
    """Takes the place of a layer, of which it has all attributes: notes the call and hands the hidden states on."""

    def __init__(self, layer: nn.Module, note: Callable[[tuple, dict], Tensor], output: Any):
        super().__init__()
        # (The layer does not become a submodule, and the name is none that a layer has.)
        self.__dict__["_passed"] = (layer, note, output)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_passed"][0], name)

    def forward(self, *args, **kwargs) -> Any:
        _, note, output = self._passed
        hidden = note(args, kwargs)
        return hidden if output is None else type(output)((hidden, *output[1:]))


# Of one layer: positional arguments behind the hidden states, and the others.
_RawCall = tuple[tuple, dict[str, Any]]


class CallRecorder:
    """Records how a model calls its decoder layers, batch by batch.

    The first batch passes through the layers and once more past them. Where the calls were the same, what a layer computes has no part in
    them, and no other batch needs to pass through. Rotary tables and masks that are the same for all batches of equal shape are kept
    once, on the device; others on the CPU.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.layers = decoder_layers(model)
        self._known: dict[tuple, Tensor] = {}
        # What each layer returns ([`_form`]); empty where layers cannot be passed by.
        self._outputs: list[Any] | None = None

    @torch.no_grad()
    def first_input(self, batch: Mapping[str, Any]) -> Tensor:
        """The first layer's input, `[B, T, d]`, on the model's device."""
        found: list[Tensor] = []

        def observe(_, args, kwargs):
            found.append((args[0] if args else kwargs["hidden_states"]).detach())
            raise _Stop

        with self.layers[0].register_forward_pre_hook(observe, prepend=True, with_kwargs=True), suppress(_Stop):
            self._run(batch)
        return found[0]

    @torch.no_grad()
    def record(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[LayerCall]]:
        """The first layer's input, `[B, T, d]`, and the calls of all layers, for one batch on the model's device.

        Raises:
            SurgeryError: the model does not call each layer once, in order, with the output of the one before.
        """
        if self._outputs:
            first, calls = self._past_layers(batch)
        else:
            first, calls = self._through_layers(batch)
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        away = [False]

        def keep(value: Any, key: tuple) -> Any:
            if isinstance(value, Tensor):
                # (The tensor too, so that its id stays its own.)
                if id(value) not in shared:
                    shared[id(value)] = (value, self._kept(value.detach(), key))
                kept = shared[id(value)][1]
                away[0] |= kept.device != value.device
                return kept
            if type(value) is tuple:
                return tuple(keep(item, (*key, index)) for index, item in enumerate(value))
            if type(value) is dict:
                return {name: keep(item, (*key, name)) for name, item in value.items()}
            return value

        kept = []
        for index, (args, kwargs) in enumerate(calls):
            away[0] = False
            args, kwargs = keep(args, (index, "args")), keep(kwargs, (index,))
            kept.append(LayerCall(args, kwargs, away[0]))
        return first, kept

    def _kept(self, value: Tensor, key: tuple) -> Tensor:
        known = self._known.setdefault((*key, tuple(value.shape)), value)
        return known if known.dtype == value.dtype and torch.equal(known, value) else value.cpu()

    def _run(self, batch: Mapping[str, Any]) -> None:
        # The body only: nobody looks at the logits.
        self.model.base_model(**model_inputs(self.model.base_model, batch, None))

    def _check(self, calls: list[_RawCall]) -> None:
        if len(calls) != len(self.layers):
            raise self._refuse(f"called {len(calls)} of its {len(self.layers)} decoder layers")

    def _refuse(self, what: str) -> SurgeryError:
        return SurgeryError(
            f"{type(self.model).__name__} {what}: a warm start needs a model that calls each decoder layer once, in order, with what the "
            "one before returned."
        )

    def _through_layers(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[_RawCall]]:
        first: list[Tensor] = []
        calls: list[_RawCall] = []
        outputs: list[Any] = []
        trial = self._outputs is None

        def before(index: int):
            def hook(_, args, kwargs):
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if not first:
                    first.append(hidden.detach())
                elif trial and hidden is not previous[0] and not _equal(hidden, previous[0]):
                    raise self._refuse(f"changes the hidden states between its layers, before layer {index}")
                if len(calls) != index:
                    raise self._refuse(f"calls layer {index} after {len(calls)} calls of layers")
                calls.append((tuple(args[1:]), kwargs))

            return hook

        previous: list[Tensor] = []

        def after(_, args, output):
            if trial:
                previous[:] = [_hidden_of(output)]
                outputs.append(_form(output))

        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                stack.callback(layer.register_forward_pre_hook(before(index), prepend=True, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(after).remove)
            self._run(batch)
        self._check(calls)
        if trial and not self._can_pass(batch, first[0], calls, outputs):
            self._outputs = []
        return first[0], calls

    def _can_pass(self, batch: Mapping[str, Any], first: Tensor, calls: list[_RawCall], outputs: list[Any]) -> bool:
        """Whether the calls are the same where the layers compute nothing."""
        if _UNKNOWN in outputs:
            return False
        self._outputs = outputs
        try:
            passed = self._past_layers(batch)
            return _equal((first, tuple(calls)), (passed[0], tuple(passed[1])))
        except Exception:  # whatever a model does to its layers besides calling them
            return False

    def _past_layers(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[_RawCall]]:
        first: list[Tensor] = []
        calls: list[_RawCall] = []

        def note(args: tuple, kwargs: dict[str, Any]) -> Tensor:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if not first:
                first.append(hidden.detach())
            calls.append((tuple(args[1:]), kwargs))
            return hidden

        layers, outputs = list(self.layers), self._outputs or []
        try:
            for index, layer in enumerate(layers):
                self.layers[index] = _Passes(layer, note, outputs[index])
            self._run(batch)
        finally:
            for index, layer in enumerate(layers):
                self.layers[index] = layer
        self._check(calls)
        return first[0], calls
