"""The token losses of hidden states: output layer, losses and their gradients a chunk of tokens at a time, in one pass.

The logits of a batch never exist as a whole, neither model's. Liger Kernel (arXiv 2410.10989) does so on GPUs for the cross entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from ..teacher.teacher_scores import TeacherScores
from .logits_tail import LogitsTail
from .tied_table import TiedTable
from .token_losses import TokenLosses, chunks, compute_dtype


# Logits of one model that exist at the same time. A product of few tokens reads the whole table for them, so that they should be
# many more than those whose softmaxes fit a cache.
_CPU_PRODUCT_BYTES = 100 << 20
_ACCELERATOR_PRODUCT_TOKENS = 1024

# Rows of a table whose gradient in half precision exists before it is added to the whole one in float32.
_HALF_GRADIENT_ROWS = 2**14


def product_tokens(device: torch.device, width: int, dtype: torch.dtype) -> int:
    """Tokens a product with a table of `width` rows."""
    if device.type != "cpu":
        return _ACCELERATOR_PRODUCT_TOKENS
    return max(1, _CPU_PRODUCT_BYTES // (width * dtype.itemsize))


def is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes `x W^T + b` and nothing else. (FSDP2 derives a class that does.)"""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)


class _Products:
    """`x W^T + b` of some tokens at a time, in one piece of memory: fresh one would be handed out page by page, zeroed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, tokens: int):
        self.weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._memory = weight.new_empty((tokens, weight.shape[0]), dtype=dtype)

    def __call__(self, states: Tensor) -> Tensor:
        out = self._memory[: len(states)]
        if self._bias is None:
            return torch.mm(states, self.weight.T, out=out)
        return torch.addmm(self._bias, states, self.weight.T, out=out)


class HeadTeacher(TeacherScores):
    """A teacher by what its output layer reads.

    Args:
        states: `[N, H]`, of the selected tokens.
        head: the output layer, any module.
        tail: see [`LogitsTail`].
        width: leading columns that count.
        temperature: of the loss.
        dtype: of its products.
    """

    def __init__(
        self, states: Tensor, head: nn.Module, tail: LogitsTail, width: int, temperature: float, dtype: torch.dtype
    ):
        self._states, self._head, self._tail = states, head, tail
        self._width, self._temperature, self._dtype = width, temperature, dtype
        self._products: _Products | None = None
        self._first, self._logits = 0, states[:0]

    def begin(self, rows: slice) -> None:
        states = self._states[rows]
        self._first = rows.start
        if is_plain_linear(self._head):
            if self._products is None:
                self._products = _Products(self._head.weight, self._head.bias, self._dtype, len(states))
            self._logits = self._products(states.to(self._dtype))
        else:
            self._logits = self._head(states)

    def scores(self, rows: slice, dtype: torch.dtype) -> Tensor:
        mine = self._logits[rows.start - self._first : rows.stop - self._first, : self._width]
        return self._tail(mine.to(dtype)) / self._temperature

    def end(self) -> None:
        self._products, self._logits = None, self._states[:0]


class TokenWeights(NamedTuple):
    """Of the two sums in the loss that is going to be derived. Their ratio has to be known beforehand, since there is one gradient."""

    cross_entropy: float = 1.0
    kl: float = 0.0


@dataclass(frozen=True)
class HeadPlan:
    """How the student's output layer is computed.

    Attributes:
        dtype: of its products.
        tail: see [`LogitsTail`].
        weights: see [`TokenWeights`].
        product_tokens: tokens a product.
        chunk_size: tokens whose softmaxes exist at the same time.
    """

    dtype: torch.dtype
    tail: LogitsTail
    weights: TokenWeights
    product_tokens: int
    chunk_size: int


def _add_product(total: Tensor, gradient: Tensor, states: Tensor) -> None:
    """`total += gradient^T states`, in the precision of `total`."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, states)
        return
    for rows in chunks(len(total), _HALF_GRADIENT_ROWS):
        total[rows] += gradient[:, rows].T @ states


class _HeadTokenLosses(torch.autograd.Function):
    """The forward pass leaves the gradients of states, weight and bias behind; the backward pass scales them."""

    @staticmethod
    def forward(ctx, states, weight, bias, anchor, labels, losses, plan, of_head, is_derived):
        exact = compute_dtype(plan.dtype)
        wants = [is_derived and wanted for wanted in ctx.needs_input_grad[:3]]
        wants[1] = wants[1] or (is_derived and of_head is not None)
        of_states = torch.empty_like(states) if wants[0] else None
        of_weight = torch.zeros_like(weight, dtype=exact) if wants[1] else None
        of_bias = torch.zeros_like(bias, dtype=exact) if wants[2] else None
        cross_entropy = torch.zeros((), dtype=exact, device=states.device)
        total = torch.zeros((), dtype=exact, device=states.device)
        product = _Products(weight, bias, plan.dtype, min(plan.product_tokens, len(states)))
        for chunk in chunks(len(states), plan.product_tokens):
            inputs = states[chunk].to(plan.dtype)
            products = product(inputs)
            if losses.teacher is not None:
                losses.teacher.begin(chunk)
            for part in chunks(len(products), plan.chunk_size):
                rows = slice(chunk.start + part.start, chunk.start + part.stop)
                logits = plan.tail(products[part].to(exact))
                log_probs = losses.log_probs(logits, rows)
                sums = losses.sums(labels[rows], log_probs)
                cross_entropy += sums[0]
                total += sums[1]
                if any(wants):
                    gradient = losses.gradient(labels[rows], rows, log_probs, *plan.weights)
                    products[part] = plan.tail.pull_back(gradient, logits)
            if of_states is not None:
                of_states[chunk] = products @ product.weight
            if of_weight is not None:
                _add_product(of_weight, products, inputs)
            if of_bias is not None:
                of_bias += products.sum(0, dtype=exact)
        if losses.teacher is not None:
            losses.teacher.end()
        gradients = (of_states, of_weight, of_bias)
        ctx.gradients = [
            gradient if gradient is None else gradient.to(value.dtype)
            for gradient, value in zip(gradients, (states, weight, bias), strict=True)
        ]
        ctx.weights, ctx.of_head = plan.weights, of_head
        return cross_entropy, total, cross_entropy.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_cross_entropy, grad_divergence, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the token losses of one forward pass can be derived once only")
        of_cross_entropy, of_divergence = ctx.weights
        mine, theirs = grad_cross_entropy * of_divergence, grad_divergence * of_cross_entropy
        scale = grad_cross_entropy / of_cross_entropy if of_cross_entropy else grad_divergence / (of_divergence or 1.0)
        # Another ratio than the one that the gradients were made for must not pass unseen. (Asking would wait for the device.)
        scale = torch.where((mine - theirs).abs() <= 1e-3 * mine.abs(), scale, torch.nan)
        of_states, of_weight, of_bias = (
            gradient if gradient is None else gradient.mul_(scale) for gradient in gradients
        )
        if ctx.of_head is None:
            return of_states, of_weight, of_bias, None, None, None, None, None, None
        ctx.of_head.put(of_weight)
        # (That of the anchor is nothing, but says that the lookup's is due.)
        return of_states, None, of_bias, scale.new_zeros(()), None, None, None, None, None


def head_token_losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    losses: TokenLosses,
    plan: HeadPlan,
    tied: TiedTable | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What [`distillation_token_losses`] gives for the logits `tail(states W^T + b)`, which never exist as a whole.

    Args:
        states: `[N, H]`, of the selected tokens alone.
        weight: `[V, H]`.
        bias: `[V]`.
        labels: `[N]` int64.
        losses: see [`TokenLosses`].
        plan: see [`HeadPlan`].
        tied: the lookup of this pass in the same table, which hands on the gradient of `weight` together with its own.

    Returns:
        Sum of the cross entropy, sum of the divergence, and a zero whose gradient is nothing: it ties whatever it is added to to the
        graph. A derived loss must weigh the sums in the ratio of `plan.weights`; its gradients are NaN otherwise.
    """
    anchor = of_head = None
    if tied is not None and tied.weight is weight:
        weight, anchor, of_head = weight.detach(), tied.anchor, tied.of_head
    is_derived = torch.is_grad_enabled()
    return _HeadTokenLosses.apply(states, weight, bias, anchor, labels, losses, plan, of_head, is_derived)
