"""Cross entropy and divergence from a teacher's next-token distributions, as pure functions of tensors, a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.preprocessing import IGNORE_INDEX
from ..teacher.teacher_scores import TeacherScores, TopLogits, TopTeacher, WholeTeacher
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
    count: Tensor  # type: ignore[assignment]  # the tuple's method of this name is not used


def compute_dtype(logits_dtype: torch.dtype) -> torch.dtype:
    """In which softmaxes of logits are taken."""
    return torch.float64 if logits_dtype == torch.float64 else torch.float32


def default_chunk_size(device: torch.device, width: int) -> int:
    """Tokens whose softmaxes over `width` columns exist at the same time."""
    return _ACCELERATOR_CHUNK_TOKENS if device.type != "cpu" else max(1, _CPU_CHUNK_ELEMENTS // width)


class LogProbs(NamedTuple):
    """Of a chunk of tokens; without a teacher the first alone.

    Attributes:
        student: `[n, V]`.
        softened: those at the temperature, of the columns that the divergence reads.
        outcomes: of the teacher's outcomes, by the student, at the temperature.
        teacher: of these, by the teacher.
    """

    student: Tensor
    softened: Tensor | None = None
    outcomes: Tensor | None = None
    teacher: Tensor | None = None


@dataclass(frozen=True)
class TokenLosses:
    """Which losses a token has, and how: see [`distillation_token_losses`].

    Attributes:
        teacher: `None` for cross entropy alone.
        vocab_size: leading columns that the divergence reads.
    """

    teacher: TeacherScores | None = None
    divergence: Divergence = field(default_factory=ForwardKL)
    temperature: float = 1.0
    vocab_size: int | None = None
    label_smoothing: float = 0.0

    def log_probs(self, logits: Tensor, rows: slice) -> LogProbs:
        """Of the student's logits `[n, V]` of these rows, and of the teacher's."""
        log_p = F.log_softmax(logits, dim=-1)
        if self.teacher is None:
            return LogProbs(log_p)
        # The softmax of the cross entropy is the divergence's too.
        one_softmax = self.temperature == 1 and self.vocab_size == logits.shape[-1]
        softened = log_p if one_softmax else F.log_softmax(logits[:, : self.vocab_size] / self.temperature, dim=-1)
        log_t = F.log_softmax(self.teacher.scores(rows, logits.dtype), dim=-1)
        return LogProbs(log_p, softened, self.teacher.outcomes(softened, rows), log_t)

    def sums(self, labels: Tensor, log_probs: LogProbs) -> tuple[Tensor, Tensor | float]:
        """Of cross entropy and divergence."""
        log_p = log_probs.student
        nll = -log_p.gather(-1, labels[:, None]).squeeze(-1)
        if self.label_smoothing:
            nll = (1 - self.label_smoothing) * nll - self.label_smoothing * log_p.mean(-1)
        if log_probs.outcomes is None or log_probs.teacher is None:
            return nll.sum(), 0.0
        total = self.divergence.total(log_probs.outcomes, log_probs.teacher)
        return nll.sum(), total * self.temperature**2

    def gradient(
        self,
        labels: Tensor,
        rows: slice,
        log_probs: LogProbs,
        of_cross_entropy: Tensor | float,
        of_divergence: Tensor | float,
    ) -> Tensor:
        """`[n, V]`: that of the two [`sums`], times their factors, with respect to the logits. `log_probs` are overwritten."""
        log_p, softened, outcomes, log_t = log_probs
        spread = None
        if self.teacher is not None and softened is not None and outcomes is not None and log_t is not None:
            # d (tau^2 D) / d logits = tau * d D / d (logits / tau)
            spread = self.teacher.spread(self.divergence.gradient(outcomes, log_t), softened, outcomes, rows)
            spread *= self.temperature * of_divergence
        # d CE / d logits = softmax(s) - target distribution
        gradient = log_p.exp_()
        if self.label_smoothing:
            gradient -= self.label_smoothing / gradient.shape[-1]
        gradient.scatter_add_(-1, labels[:, None], torch.full_like(gradient[:, :1], self.label_smoothing - 1))
        gradient *= of_cross_entropy
        if spread is not None:
            gradient[:, : self.vocab_size] += spread
        return gradient


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `count` tokens."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class _ChunkedTokenLosses(torch.autograd.Function):
    """Cross entropy and divergence from the teacher, a chunk of tokens at a time in both directions.

    Autograd would keep every chunk's float32 softmax for the backward pass. Checkpointing each chunk would avoid
    that, but the gradient of each chunk's gather is a zero-filled tensor of the full logits' size. Here backward
    computes the softmaxes again, chunk by chunk, and writes their gradients into one tensor of the logits' dtype:
    the only full-size tensor that the loss ever makes.
    """

    @staticmethod
    def forward(ctx, student, positions, labels, losses, chunk_size):
        dtype = compute_dtype(student.dtype)
        cross_entropy = torch.zeros((), dtype=dtype, device=student.device)
        total = torch.zeros((), dtype=dtype, device=student.device)
        for rows in chunks(len(positions), chunk_size):
            log_probs = losses.log_probs(student[positions[rows]].to(dtype), rows)
            sums = losses.sums(labels[rows], log_probs)
            cross_entropy += sums[0]
            total += sums[1]
        ctx.save_for_backward(student, positions, labels)
        ctx.losses, ctx.chunk_size = losses, chunk_size
        return cross_entropy, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_cross_entropy, grad_divergence):
        student, positions, labels = ctx.saved_tensors
        dtype = compute_dtype(student.dtype)
        grad_student = torch.zeros_like(student)
        for rows in chunks(len(positions), ctx.chunk_size):
            log_probs = ctx.losses.log_probs(student[positions[rows]].to(dtype), rows)
            gradient = ctx.losses.gradient(labels[rows], rows, log_probs, grad_cross_entropy, grad_divergence)
            grad_student[positions[rows]] = gradient.to(student.dtype)
        return grad_student, None, None, None, None


def selected_token_losses(
    logits: Tensor, positions: Tensor, labels: Tensor, losses: TokenLosses, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """[`TokenLosses.sums`] of whole logits `[N, V]` at some positions `[n]` int64 with their labels `[n]` int64, a chunk of them at a time;
    with gradients."""
    return _ChunkedTokenLosses.apply(logits, positions, labels, losses, chunk_size)


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
        chunk_size = default_chunk_size(student_logits.device, student_logits.shape[-1])
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if student_logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(student_logits.shape)}"
        )
    width = student_logits.shape[-1]
    source: TeacherScores | None = None
    flat = targets.reshape(-1)
    positions = (flat != IGNORE_INDEX).nonzero().squeeze(-1)
    if isinstance(teacher_logits, TopLogits):
        vocab_size = width if vocab_size is None else vocab_size
        check_top(teacher_logits, len(positions), vocab_size, width)
        source = TopTeacher(teacher_logits)
    elif teacher_logits is not None:
        vocab_size = _shared_width(student_logits, teacher_logits, targets, vocab_size)
        whole = teacher_logits.detach().reshape(-1, teacher_logits.shape[-1])
        source = WholeTeacher(whole, positions, temperature, vocab_size)
    cross_entropy, total = selected_token_losses(
        student_logits.reshape(-1, width),
        positions,
        flat[positions],
        TokenLosses(source, divergence or ForwardKL(), temperature, vocab_size, label_smoothing),
        chunk_size,
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


def check_top(top: TopLogits, count: int, vocab_size: int, width: int) -> None:
    """Refuse a teacher's top logits that are not those of `count` tokens of a student with `width` columns.

    Raises:
        ValueError: naming the difference.
    """
    if len(top.ids) != count or top.ids.shape != top.scores.shape:
        raise ValueError(
            f"the teacher's top logits are {tuple(top.scores.shape)} at ids {tuple(top.ids.shape)}, and {count} tokens are selected"
        )
    k = top.ids.shape[-1]
    if not k <= vocab_size <= width:
        raise ValueError(f"the teacher's top {k} of {vocab_size} columns do not fit student logits of {width} columns")
    if (top.tail is None) != (k == vocab_size):
        raise ValueError(f"the top {k} of {vocab_size} columns {'have no' if k == vocab_size else 'need a'} tail")
