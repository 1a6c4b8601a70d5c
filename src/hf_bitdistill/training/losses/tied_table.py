"""The gradient of a table that a model's embedding and its output layer share, which exists once.

Autograd makes two of it, each as large as the table: that of the output layer, and that of the lookup, of which all but the rows of a batch
are zero. Here the output layer hands its own over to the lookup, whose backward pass comes later, and the lookup adds its rows. So the
table's parameter is given one gradient, in the usual way: hooks, DDP, FSDP and ZeRO see nothing unusual.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._compat import backward_pass


def is_plain_embedding(module: Any) -> bool:
    """Whether a module looks rows of its weight up and does nothing else, with a gradient for each."""
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and "forward" not in vars(module)
        and not (module.sparse or module.scale_grad_by_freq)
        and module.max_norm is None
    )


def _sums_of_rows(gradient: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over equal ids of rows `[N, H]`: the ids they belong to `[N]`, each once, and the sums `[N, H]`, zeros where there are fewer.

    (Their number is not asked for: an accelerator would wait for it.)
    """
    ordered, places = ids.sort(stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    numbers = is_new.cumsum(0) - 1
    number_of = torch.empty_like(numbers).scatter_(0, places, numbers)
    rows = torch.zeros_like(ordered).scatter_(0, numbers, ordered)
    return rows, torch.ops.aten.embedding_dense_backward(gradient, number_of, len(ids), -1, False)


class HandedOver:
    """The output layer's gradient of the table, `[V, H]`, between its own backward pass and the lookup's."""

    def __init__(self) -> None:
        self._gradient: Tensor | None = None
        self._pass = -1

    def put(self, gradient: Tensor | None) -> None:
        self._gradient, self._pass = gradient, backward_pass()

    def take(self) -> Tensor | None:
        """What was put by this backward pass; one that wanted nothing of the table has left it."""
        gradient, self._gradient = self._gradient, None
        return gradient if self._pass == backward_pass() else None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, ids, padding_idx, of_head):
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx, ctx.of_head = weight.shape, padding_idx, of_head
        return F.embedding(ids, weight), weight.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, _):
        (ids,) = ctx.saved_tensors
        total = ctx.of_head.take()
        if total is None:
            total = gradient.new_zeros(ctx.shape)
        flat, gradient = ids.reshape(-1), gradient.reshape(-1, ctx.shape[1])
        if ctx.padding_idx is not None:
            gradient = gradient.masked_fill((flat == ctx.padding_idx)[:, None], 0.0)
        if len(flat):
            total.index_add_(0, *_sums_of_rows(gradient, flat))
        return total, None, None, None


class TiedTable:
    """One forward pass's lookup in a table that the output layer shares.

    Args:
        weight: `[V, H]`, of the embedding and of the output layer.
        ids: token ids, of any shape.
        padding_idx: the row that gets no gradient from the lookup.

    Attributes:
        weight: the table.
        rows: what the lookup gives, `[..., H]`.
        anchor: a zero of the same node of the graph. Whatever is computed from it has its backward pass before the lookup's.
        of_head: where the output layer's backward pass leaves its gradient of the table.
    """

    def __init__(self, weight: Tensor, ids: Tensor, padding_idx: int | None):
        self.weight = weight
        self.of_head = HandedOver()
        self.rows, self.anchor = _Lookup.apply(weight, ids, padding_idx, self.of_head)

    @classmethod
    def of(cls, embedding: Any, args: tuple, kwargs: dict, head: Any) -> TiedTable | None:
        """That of a call of an embedding whose table `head` shares; `None` where the two gradients have to be made separately."""
        weight: Tensor | None = getattr(embedding, "weight", None)
        shared = getattr(head, "weight", None) is weight and is_plain_embedding(embedding)
        if weight is None or not shared:
            return None
        fits = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        # (In 16 bits the two are summed up in float32 each, and rounded.)
        if not fits or weight.dtype.itemsize < 4 or not (weight.requires_grad and torch.is_grad_enabled()):
            return None
        return cls(weight, args[0], embedding.padding_idx)
