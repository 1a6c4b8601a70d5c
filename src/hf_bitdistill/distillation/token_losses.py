"""Cross entropy and divergence from a teacher's next-token distributions, as a pure function of tensors, a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.preprocessing import IGNORE_INDEX
from .divergences import Divergence, ForwardKL


# Of a chunk of the token losses. On a CPU its float32 softmaxes, which several operators pass over, should stay in the cache
# (2**20 elements are 4 MiB); an accelerator wants fewer and larger operators.
_CPU_CHUNK_ELEMENTS = 2**20
_ACCELERATOR_CHUNK_TOKENS = 256


class TokenLossSums(NamedTuple):
    """Sums over the selected tokens, and how many there are.

    Attributes:
        cross_entropy: scalar, sum of the negative log-likelihoods in nats.
        kl: scalar, sum of `tau^2` times the divergence from the teacher, in nats (zero without a teacher).
        count: int64 scalar, the number of selected tokens.
    """

    cross_entropy: Tensor
    kl: Tensor
    count: Tensor


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _default_chunk_size(logits: Tensor) -> int:
    if logits.device.type != "cpu":
        return _ACCELERATOR_CHUNK_TOKENS
    return max(1, _CPU_CHUNK_ELEMENTS // logits.shape[-1])


class TopLogits(NamedTuple):
    """A teacher's distributions by their most likely outcomes: what is left of them is one outcome more, the tail.

    Attributes:
        ids: `[N, k]` int64, different ones in a row.
        scores: `[N, k]` floating, their logits at the temperature of the loss, up to a constant.
        tail: `[N]` floating, the logarithm of the sum of `exp(score)` of all others; `None` if there are no others.
    """

    ids: Tensor
    scores: Tensor
    tail: Tensor | None


class _WholeTeacher:
    """The teacher's logits of every column."""

    def __init__(self, temperature: float, width: int):
        self.temperature, self.width = temperature, width

    def scores(self, tensors: tuple[Tensor, ...], index: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        return tensors[0][index, : self.width].to(dtype) / self.temperature

    def total(
        self, divergence: Divergence, log_p: Tensor, scores: Tensor, tensors: tuple[Tensor, ...], rows: slice
    ) -> Tensor:
        return divergence.total(log_p, F.log_softmax(scores, dim=-1))

    def gradient(
        self,
        divergence: Divergence,
        student: Tensor,
        scores: Tensor,
        tensors: tuple[Tensor, ...],
        rows: slice,
        probabilities: Tensor | None,
    ) -> Tensor:
        return divergence.gradient(student, scores, probabilities)


class _TopTeacher:
    """The teacher's most likely outcomes, and the tail as one more: both models' probabilities of it are compared."""

    def scores(self, tensors: tuple[Tensor, ...], index: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        _, scores, *tail = tensors
        return torch.cat([scores[rows], *(value[rows, None] for value in tail)], dim=-1).to(dtype)

    @staticmethod
    def _outcomes(log_p: Tensor, tensors: tuple[Tensor, ...], rows: slice) -> Tensor:
        ids = tensors[0][rows]
        top = log_p.gather(-1, ids)
        if len(tensors) == 2:
            return top
        # (Not 1 minus their sum, of which little would be left.)
        return torch.cat([top, log_p.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)], dim=-1)

    def total(
        self, divergence: Divergence, log_p: Tensor, scores: Tensor, tensors: tuple[Tensor, ...], rows: slice
    ) -> Tensor:
        return divergence.total(self._outcomes(log_p, tensors, rows), F.log_softmax(scores, dim=-1))

    def gradient(
        self,
        divergence: Divergence,
        student: Tensor,
        scores: Tensor,
        tensors: tuple[Tensor, ...],
        rows: slice,
        probabilities: Tensor | None,
    ) -> Tensor:
        log_p = F.log_softmax(student, dim=-1)
        outcomes = self._outcomes(log_p, tensors, rows)
        gradient = divergence.gradient(outcomes, scores)
        if len(tensors) == 2:
            return torch.zeros_like(log_p).scatter_(-1, tensors[0][rows], gradient)
        # What falls to the tail goes to its tokens by their shares of it.
        spread = (log_p - outcomes[:, -1:]).exp_().mul_(gradient[:, -1:])
        return spread.scatter_(-1, tensors[0][rows], gradient[:, :-1])


class _ChunkedTokenLosses(torch.autograd.Function):
    """Cross entropy and divergence from the teacher, a chunk of tokens at a time in both directions.

    Autograd would keep every chunk's float32 softmax for the backward pass. Checkpointing each chunk would avoid
    that, but the gradient of each chunk's gather is a zero-filled tensor of the full logits' size. Here backward
    computes the softmaxes again, chunk by chunk, and writes their gradients into one tensor of the logits' dtype:
    the only full-size tensor that the loss ever makes.
    """

    @staticmethod
    def forward(ctx, student, positions, labels, settings, *teacher):
        temperature, chunk_size, vocab_size, label_smoothing, divergence, source = settings
        dtype = _compute_dtype(student)
        cross_entropy = torch.zeros((), dtype=dtype, device=student.device)
        total = torch.zeros((), dtype=dtype, device=student.device)
        # The softmax of the cross entropy is the divergence's too.
        one_softmax = temperature == 1 and vocab_size == student.shape[-1]
        for index, target, rows in _chunks(positions, labels, chunk_size):
            logits = student[index].to(dtype)
            log_p = F.log_softmax(logits, dim=-1)
            nll = -log_p.gather(-1, target[:, None]).squeeze(-1)
            if label_smoothing:
                nll = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(-1)
            cross_entropy += nll.sum()
            if source is not None:
                if not one_softmax:
                    log_p = F.log_softmax(logits[:, :vocab_size] / temperature, dim=-1)
                scores = source.scores(teacher, index, rows, dtype)
                total += source.total(divergence, log_p, scores, teacher, rows)
        ctx.save_for_backward(student, positions, labels, *teacher)
        ctx.settings = (*settings, one_softmax)
        return cross_entropy, total * temperature**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_cross_entropy, grad_divergence):
        student, positions, labels, *teacher = ctx.saved_tensors
        temperature, chunk_size, vocab_size, label_smoothing, divergence, source, one_softmax = ctx.settings
        dtype = _compute_dtype(student)
        grad_student = torch.zeros_like(student)
        for index, target, rows in _chunks(positions, labels, chunk_size):
            logits = student[index].to(dtype)
            # d CE / d logits = softmax(s) - target distribution
            grad = F.softmax(logits, dim=-1)
            if source is not None:
                # d (tau^2 D) / d logits = tau * d D / d (logits / tau)
                scores = source.scores(teacher, index, rows, dtype)
                own, known = (logits, grad) if one_softmax else (logits[:, :vocab_size] / temperature, None)
                softened = source.gradient(divergence, own, scores, teacher, rows, known)
            if label_smoothing:
                grad -= label_smoothing / logits.shape[-1]
            grad.scatter_add_(-1, target[:, None], torch.full_like(grad[:, :1], label_smoothing - 1))
            grad *= grad_cross_entropy
            if source is not None:
                grad[:, :vocab_size] += softened.mul_(temperature * grad_divergence)
            grad_student[index] = grad.to(student.dtype)
        return grad_student, None, None, None, *(None for _ in teacher)


def _chunks(positions: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Places in the flattened logits, their labels, and which of the selected tokens they are."""
    for start in range(0, len(positions), size):
        rows = slice(start, start + size)
        yield positions[rows], labels[rows], rows


def distillation_token_losses(
    student_logits: Tensor,
    teacher_logits: Tensor | TopLogits | None,
    targets: Tensor,
    *,
    divergence: Divergence | None = None,
    temperature: float = 5.0,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
    label_smoothing: float = 0.0,
) -> TokenLossSums:
    """Cross entropy on the labels and `tau^2 * D(softmax(t / tau), softmax(s / tau))`, summed over tokens; D is the forward KL.

    Source: arXiv 2510.13998, stage 3 (`L_CE` and `L_LD`, tau = 5); the factor `tau^2` keeps the size of the
    gradient independent of tau. Only positions whose target is not -100 are read, a chunk of them at a time, so
    that no float32 copy of the whole logits exists in forward or backward.

    Args:
        student_logits: `[..., V]`, any floating dtype; the softmaxes are computed in float32 (float64 for float64).
        teacher_logits: `[..., V_teacher]` with the same leading dimensions, or [`TopLogits`] of the selected tokens (in the order of
            the flattened targets), or `None` for cross entropy alone. No gradient flows into it.
        targets: `[...]` int64, *aligned with the logits* (a causal LM's labels already shifted: see
            `shift_labels`), -100 where there is nothing to learn. For classification: logits `[B, C]`, targets `[B]`.
        divergence: D. Default: the forward KL.
        temperature: tau, > 0.
        chunk_size: tokens a chunk. Default: 256 on an accelerator; on a CPU so many that a chunk's float32 softmax is 4 MiB
            (21 tokens of a vocabulary of 49152).
        vocab_size: D reads the first `vocab_size` columns of both logits. It must be given where the widths
            differ, which is right only if the surplus columns are padding rows of one embedding: check the
            tokenizers first (`check_same_tokenizer`). With `TopLogits`: the number of columns that the teacher had (default:
            all of the student's).
        label_smoothing: as in `torch.nn.functional.cross_entropy`.

    Returns:
        `TokenLossSums` (scalars: float32 or float64, and an int64 count). Nothing selected gives zeros whose
        gradient is zero.

    Raises:
        ValueError: shapes do not match, widths differ without `vocab_size`, or a setting is out of range.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk_size is None:
        chunk_size = _default_chunk_size(student_logits)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if student_logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(student_logits.shape)}"
        )
    width = student_logits.shape[-1]
    source: _WholeTeacher | _TopTeacher | None = None
    teacher: tuple[Tensor, ...] = ()
    flat = targets.reshape(-1)
    positions = (flat != IGNORE_INDEX).nonzero().squeeze(-1)
    if isinstance(teacher_logits, TopLogits):
        vocab_size = width if vocab_size is None else vocab_size
        _check_top(teacher_logits, len(positions), vocab_size, width)
        source, teacher = _TopTeacher(), tuple(value.detach() for value in teacher_logits if value is not None)
    elif teacher_logits is not None:
        vocab_size = _shared_width(student_logits, teacher_logits, targets, vocab_size)
        source = _WholeTeacher(temperature, vocab_size)
        teacher = (teacher_logits.detach().reshape(-1, teacher_logits.shape[-1]),)
    cross_entropy, total = _ChunkedTokenLosses.apply(
        student_logits.reshape(-1, width),
        positions,
        flat[positions],
        (temperature, chunk_size, vocab_size, label_smoothing, divergence or ForwardKL(), source),
        *teacher,
    )
    return TokenLossSums(cross_entropy, total, torch.tensor(positions.numel(), device=targets.device))


def _shared_width(student: Tensor, teacher: Tensor, targets: Tensor, vocab_size: int | None) -> int:
    if teacher.shape[:-1] != targets.shape:
        raise ValueError(
            f"teacher logits of shape {tuple(teacher.shape)} do not fit student logits of shape {tuple(student.shape)}"
        )
    width, teacher_width = student.shape[-1], teacher.shape[-1]
    if vocab_size is None:
        if teacher_width != width:
            raise ValueError(
                f"student logits have {width} columns and teacher logits {teacher_width}: pass vocab_size, the "
                "number of leading columns which both share"
            )
        vocab_size = width
    if not 1 <= vocab_size <= min(width, teacher_width):
        raise ValueError(f"vocab_size {vocab_size} does not fit logits of {width} and {teacher_width} columns")
    return vocab_size


def _check_top(top: TopLogits, count: int, vocab_size: int, width: int) -> None:
    if len(top.ids) != count or top.ids.shape != top.scores.shape:
        raise ValueError(
            f"the teacher's top logits are {tuple(top.scores.shape)} at ids {tuple(top.ids.shape)}, and {count} tokens are selected"
        )
    k = top.ids.shape[-1]
    if not k <= vocab_size <= width:
        raise ValueError(f"the teacher's top {k} of {vocab_size} columns do not fit student logits of {width} columns")
    if (top.tail is None) != (k == vocab_size):
        raise ValueError(f"the top {k} of {vocab_size} columns {'have no' if k == vocab_size else 'need a'} tail")
