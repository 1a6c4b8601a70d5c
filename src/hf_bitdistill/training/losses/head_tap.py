"""Takes what a model's output layer would read, and lets it compute the logits of one token alone.

Hooks of torch on the output layer, during one forward pass: so everything happens inside of the forward that DDP or FSDP wraps, where
weights are whole and gradients awaited, and under its autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..._compat import uncompiled
from ...nn.carried_adapters import without_adapters
from .head_losses import is_plain_linear
from .logits_tail import LogitsTail
from .tied_table import TiedTable


Take = Callable[[Tensor, nn.Module, Tensor], Tensor | None]


class HeadTap:
    """The output layer of a causal LM.

    Args:
        model: unwrapped (PEFT is looked through).
        is_derived: its gradients are wanted, which are written down for plain linear layers alone.

    Attributes:
        head: the output layer.
        tail: see [`LogitsTail`], as the config claims; compared with the model's own logits in the first pass.
        refusal: why the logits have to be whole; `None` as long as nothing speaks against it.
        tied: the lookup of the pass in a table that the output layer shares, which takes the layer's gradient of it; `None` where there is
            no such lookup.
    """

    def __init__(self, model: nn.Module, is_derived: bool):
        self.model = model
        inner = without_adapters(model)
        # What the model calls, and the layer itself, which may be compiled for itself.
        self._called: Any = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
        self.head: nn.Module | None = uncompiled(self._called)
        self.tail = LogitsTail.claimed(inner.config.get_text_config())
        self.refusal: str | None = None
        self.tied: TiedTable | None = None
        # (Some models name none.)
        self._embedding: Any = inner.get_input_embeddings() if is_derived and self.head is not None else None
        self._lookups = 0
        self._is_checked = False
        self._take: Take | None = None
        self._products: Tensor | None = None
        self._states: Tensor | None = None
        if self.head is None:
            self.refusal = "it names no output layer"
        elif is_derived and not is_plain_linear(self.head):
            self.refusal = f"its output layer is a {type(self.head).__name__}, no plain nn.Linear"

    @contextmanager
    def taking(self, take: Take) -> Iterator[None]:
        """Around one forward pass.

        Args:
            take: called with what the output layer reads, `[B, T, H]`, the layer, and its products of one token, `[1, 1, V]`. What it
                returns, a zero, is added to those, so that the logits are part of the graph; with `None` they stay what they are.
        """
        self._take, self._products = take, None
        self.tied, self._lookups = None, 0
        handles = [
            self._called.register_forward_pre_hook(self._before, with_kwargs=True),
            # Before those of wrappers, which may give the weight back.
            self._called.register_forward_hook(self._after, prepend=True),
        ]
        if self._embedding is not None and getattr(self._embedding, "weight", None) is getattr(
            self.head, "weight", None
        ):
            # Before those that change what was looked up.
            handles.append(self._embedding.register_forward_hook(self._after_lookup, with_kwargs=True, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._take = self._states = self.tied = None

    @torch.compiler.disable
    def _after_lookup(self, embedding: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        if self._take is None or self.refusal is not None:
            return None
        self._lookups += 1
        # Of several lookups the first one alone: its backward pass may come before the others', and is after the output layer's.
        self.tied = TiedTable.of(embedding, args, kwargs, self.head) if self._lookups == 1 else self.tied
        return self.tied.rows if self.tied is not None and self._lookups == 1 else None

    @torch.compiler.disable
    def _before(self, head: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        # (A compiled forward calls the hooks that it was compiled with, also outside of the context.)
        if self.refusal is not None or self._take is None:
            return None
        states: Any = args[0] if args else None
        if self._products is not None:
            self.refusal = "its output layer is called more than once"
        elif len(args) != 1 or kwargs or not isinstance(states, Tensor) or states.ndim != 3 or not states.numel():
            self.refusal = "its output layer is not called with the hidden states alone"
        elif self.head is not None and any(hasattr(each, "to_local") for each in self.head.parameters(recurse=False)):
            self.refusal = "its output layer is split over devices"
        if self.refusal is not None:
            return None
        self._states = states
        return (states[:1, :1].detach(),), kwargs

    @torch.compiler.disable
    def _after(self, head: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        states, self._states = self._states, None
        if states is None or self._take is None or self.head is None:
            return None
        self._products = output.detach()
        # Autocast would keep its copy of the whole table, made for one token, to the end of the forward pass.
        torch.clear_autocast_cache()
        if output.dtype == torch.float16:
            # Gradients are scaled by the loss, which is not known before the backward pass.
            self.refusal = "float16 loses small gradients that are not scaled"
            return None
        tie = self._take(states, self.head, self._products)
        return None if tie is None else self._products + tie

    def check(self, logits: Any) -> None:
        """Look at what the model made of the products, once: sets `refusal` if it is not what `tail` says.

        Args:
            logits: of the outputs of the forward pass.
        """
        products, self._products = self._products, None
        if self.refusal is not None:
            return
        if products is None:
            self.refusal = "its output layer is not called as a module, or was compiled before"
        elif not self._is_checked:
            if not isinstance(logits, Tensor) or not self.tail.is_of(products, logits.detach()):
                self.refusal = "its forward does more than known with what its output layer computes"
            self._is_checked = True
