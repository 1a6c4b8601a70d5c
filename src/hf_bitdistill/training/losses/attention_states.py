"""Captures Q, K and V of chosen layers through transformers' attention interface.

transformers looks up the attention function of a layer by the name in `config._attn_implementation` at every call.
While a capture is active that name is replaced by one of ours, whose function notes its arguments and then calls what
the model would have called anyway. So the states are taken where every architecture hands them over: Q and K after
rotary embedding and any q/k norm, K and V not yet repeated for grouped queries. No code per architecture, nothing in
transformers or in the model is patched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..._compat import attention_implementation, has_attention_implementation, set_attention_implementation


# The original name stays in ours, so that tests for a substring ("flash" in the name) keep their answer.
_PREFIX = "bitdistill_capture_"

# Attention functions that never read their own name. Those of flash attention and of kernels from the Hub load what they call by the
# name in the config.
_NAMELESS = ("eager", "sdpa", "flex_attention")

# Captures active in this thread (and context), innermost last. Another thread that runs the same model finds none of
# them and merely delegates.
_ACTIVE: ContextVar[tuple[AttentionStateCapture, ...]] = ContextVar("bitdistill_active_captures", default=())


class AttentionStates(NamedTuple):
    """Q, K, V of one layer: `[B, heads, T, d]`, in the dtype of the model's attention."""

    query: Tensor
    key: Tensor
    value: Tensor


class AttentionStateCapture:
    """Context manager that records Q, K, V of `layers` of `model` during one forward pass.

    The model's attention implementation is replaced on entry and restored on exit: outside the context the model is
    exactly as it was (its config says "sdpa" when it is saved or handed to somebody else). Logits are identical with
    and without a capture. Contexts of several models may be nested, also of models that share one config object.

    Works under autocast, with wrapped models (DDP, FSDP, PEFT: attention modules are found by walking the model) and
    with non-reentrant activation checkpointing: the backward pass recomputes the layers after the context was left,
    with the original function, which computes the same.

    ```python
    capture = AttentionStateCapture(model, layers=[-6])
    with capture:
        logits = model(**batch, use_cache=False).logits
    query, key, value = capture.states[0]
    ```

    Args:
        model: a transformers model, or a wrapper around one.
        layers: layer indices; negative ones count from the end.

    Attributes:
        layers: the resolved, non-negative indices.
        states: after the context, one `AttentionStates` a chosen layer, in the order of `layers`.

    Raises:
        ValueError: the architecture does not use the attention interface, or a layer index is out of range.
        RuntimeError: on leaving the context, if a chosen layer recorded nothing or recorded twice; while it runs, if
            gradient checkpointing is reentrant (its forward pass builds no graph that a loss on Q, K, V could use).
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]):
        self.model = model
        modules = attention_modules(model)
        self._architecture = architecture_name(model)
        if not modules:
            raise ValueError(
                f"{self._architecture} does not call its attention through transformers' AttentionInterface, so "
                "its Q, K, V cannot be captured: set attention_loss_weight=0"
            )
        depth = number_of_layers(model)
        self.layers = [resolve_layer(index, depth) for index in layers]
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"a layer was chosen twice: {list(layers)} of {depth}")
        missing = sorted(set(self.layers) - set(modules.values()))
        if missing:
            raise ValueError(
                f"{self._architecture} has no attention in layer(s) {missing}; layers with attention: "
                f"{sorted(set(modules.values()))}"
            )
        self._layer_of = {module: layer for module, layer in modules.items() if layer in self.layers}
        self._recorded: dict[int, AttentionStates] = {}
        self._previous: list[tuple[Any, str | None]] = []
        self._token: Token | None = None
        self._expects_gradient = False
        self.states: list[AttentionStates] = []

    def __enter__(self) -> AttentionStateCapture:
        if self._token is not None:
            raise RuntimeError("this AttentionStateCapture is already active")
        self._recorded = {}
        self.states = []
        self._expects_gradient = torch.is_grad_enabled()
        for config in {id(module.config): module.config for module in self._layer_of}.values():
            original = attention_implementation(config)
            if getattr(config, "reorder_and_upcast_attn", False) and original in (None, "eager"):
                # GPT-2's upcasting path bypasses the interface, but only under the name "eager".
                self._restore()
                raise ValueError(
                    f"{self._architecture}: eager attention with reorder_and_upcast_attn cannot be captured: load the "
                    'model with attn_implementation="sdpa"'
                )
            self._previous.append((config, original))
            set_attention_implementation(config, _capturing_name(original))
        self._token = _ACTIVE.set((*_ACTIVE.get(), self))
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        assert self._token is not None  # (it was entered)
        _ACTIVE.reset(self._token)
        self._token = None
        self._restore()
        recorded, self._recorded = self._recorded, {}
        if exc_type is not None:
            return
        missing = [layer for layer in self.layers if layer not in recorded]
        if missing:
            raise RuntimeError(
                f"{self._architecture}: layer(s) {missing} ran no attention through transformers' AttentionInterface "
                "during this forward pass, so their Q, K, V are unknown: choose other attention_layers or set "
                "attention_loss_weight=0"
            )
        self.states = [recorded[layer] for layer in self.layers]

    def _restore(self) -> None:
        while self._previous:
            config, original = self._previous.pop()
            set_attention_implementation(config, original)

    def release(self) -> list[AttentionStates]:
        """Hands the recorded states over and forgets them, so that they live no longer than their user."""
        states, self.states = self.states, []
        return states

    @torch.compiler.disable
    def _record(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        layer = self._layer_of.get(module)
        if layer is None:
            return
        if self._expects_gradient and not torch.is_grad_enabled():
            raise RuntimeError(
                "attention distillation needs non-reentrant activation checkpointing: set "
                'activation_checkpointing_kwargs={"use_reentrant": False}'
            )
        if layer in self._recorded:
            raise RuntimeError(
                f"{self._architecture}: layer {layer} called its attention more than once in one forward pass"
            )
        self._recorded[layer] = AttentionStates(query, key, value)


def _defining_module_attribute(module: nn.Module, name: str) -> Any:
    """Looks `name` up in the Python file that defines the module's class, or the nearest base class's (a wrapper
    such as FSDP2 puts a class of its own in front)."""
    for cls in type(module).__mro__:
        value = getattr(sys.modules.get(cls.__module__), name, None)
        if value is not None:
            return value
    return None


def attention_modules(model: nn.Module) -> dict[nn.Module, int]:
    """The modules of `model` that may call the attention interface, with their layer index.

    They carry an integer `layer_idx` and a `config`, and their Python file uses the interface. A decoder layer that
    meets this too does no harm: it never appears as the caller.
    """
    modules: Iterable[Any] = model.modules()
    return {
        module: module.layer_idx
        for module in modules
        if isinstance(getattr(module, "layer_idx", None), int)
        and has_attention_implementation(getattr(module, "config", None))
        and _defining_module_attribute(module, "ALL_ATTENTION_FUNCTIONS") is not None
    }


def attention_layers(model: nn.Module) -> set[int]:
    """The layers that may call the attention interface: in a hybrid model not all, in an architecture without it none."""
    return set(attention_modules(model).values())


def _transformers_config(model: nn.Module) -> Any:
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "get_text_config"):
            return config
    raise ValueError(f"{type(model).__name__} has no transformers config: Q, K, V cannot be captured")


def architecture_name(model: nn.Module) -> str:
    """For messages, for example `LlamaForCausalLM (model type "llama")`."""
    config = _transformers_config(model)
    owner = next(module for module in model.modules() if getattr(module, "config", None) is config)
    return f'{type(owner).__name__} (model type "{config.model_type}")'


def number_of_layers(model: nn.Module) -> int:
    """Depth of the (text) decoder."""
    return _transformers_config(model).get_text_config(decoder=True).num_hidden_layers


def resolve_layer(index: int, depth: int) -> int:
    """`index` as a non-negative layer index of a model with `depth` layers.

    Raises:
        ValueError: out of range.
    """
    if not -depth <= index < depth:
        raise ValueError(f"layer {index} does not exist in a model of {depth} layers")
    return index % depth


def _capturing_name(original: str | None) -> str:
    """The name of the capturing twin of an attention implementation, registered on first use."""
    original = original or "eager"
    if original.startswith(_PREFIX):  # two models share one config object and are captured at the same time
        return original
    name = _PREFIX + original
    if name not in AttentionInterface():
        AttentionInterface.register(name, _capturing_function(original))
    # Without a mask function of that name the model would build no mask at all. One that has none keeps none.
    masks = AttentionMaskInterface()
    if original in masks:
        AttentionMaskInterface.register(name, masks[original])
    return name


def _capturing_function(original: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def capture_then_delegate(module, query, key, value, attention_mask, *args, **kwargs):
        for capture in _ACTIVE.get():
            capture._record(module, query, key, value)
        # Resolved as the modelling file does: its own table may override an entry, and "eager" is its own function
        # (gemma2's applies soft-capping).
        functions = _defining_module_attribute(module, "ALL_ATTENTION_FUNCTIONS") or AttentionInterface()
        eager = _defining_module_attribute(module, "eager_attention_forward")
        function = functions.get_interface(original, eager)
        if function is None:
            raise RuntimeError(f"{type(module).__name__} defines no eager attention to delegate to")
        if original in _NAMELESS:
            return function(module, query, key, value, attention_mask, *args, **kwargs)
        ours = attention_implementation(module.config)
        set_attention_implementation(module.config, original)
        try:
            return function(module, query, key, value, attention_mask, *args, **kwargs)
        finally:
            set_attention_implementation(module.config, ours)

    return capture_then_delegate
