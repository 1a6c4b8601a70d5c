"""The losses on attention relations and hidden states as pure functions of tensors.

Every function returns *sums* and *counts*, never means: the caller divides, because only the caller knows how many
tokens the whole accumulated (and possibly distributed) batch holds. Formulas: BitNet Distillation,
arXiv 2510.13998, stage 3 (logits and attention distillation); MiniLM's relation loss, arXiv 2002.10957 and
arXiv 2012.15828.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


MAX_RELATION_HEADS = 32
RelationNormalization = Literal["cosine", "scaled_dot"]

# Elements of one [sequences, A_r, T, T] float32 block of the relation loss: 2**24 are 64 MiB.
_RELATION_BLOCK_ELEMENTS = 2**24


class RelationLossSums(NamedTuple):
    """Sum of the relation KL over Q, K, V and all valid rows, and the number of rows of *one* of the three.

    Attributes:
        kl: scalar, nats.
        rows: int64 scalar, valid tokens times relation heads.
    """

    kl: Tensor
    rows: Tensor


def largest_relation_heads(widths: Sequence[int], limit: int = MAX_RELATION_HEADS, smallest: int = 4) -> int:
    """The largest number of relation heads, at most `limit`, that divides every width and leaves each relation head
    at least `smallest` dimensions (1 if there is none: it divides everything).

    In few dimensions a relation says little: under cosine normalisation a single one has only a sign, and no
    gradient at all. Narrow key and value projections (grouped queries) of small models come to that quickly.
    """
    common, narrowest = math.gcd(*widths), min(widths)
    return max(
        (heads for heads in range(1, limit + 1) if common % heads == 0 and narrowest // heads >= smallest), default=1
    )


def state_width(states: Tensor) -> int:
    """Heads times head dimension of states `[B, H, T, d]`."""
    return states.shape[1] * states.shape[3]


def regroup_heads(states: Tensor, relation_heads: int) -> Tensor:
    """Regroups attention states `[B, H, T, d]` into `[B, A_r, T, H * d / A_r]` (arXiv 2012.15828).

    The vectors of all heads are concatenated first and then cut into `A_r` pieces, so that models with different
    numbers of heads give relations of the same shape `[B, A_r, T, T]`.

    Raises:
        ValueError: `relation_heads` does not divide `H * d`.
    """
    batch, _, length, _ = states.shape
    width = state_width(states)
    if relation_heads < 1 or width % relation_heads:
        raise ValueError(f"relation_heads={relation_heads} does not divide the width {width} of the attention states")
    return states.transpose(1, 2).reshape(batch, length, relation_heads, width // relation_heads).transpose(1, 2)


def _unit_vectors(vectors: Tensor) -> Tensor:
    """L2-normalises the last dimension. A zero vector has no direction: it stays zero and gets no gradient
    (ternary layers with small integer activations do produce exact zeros, where `x / eps` has a slope of `1 / eps`)."""
    squared = vectors.square().sum(-1, keepdim=True)
    nonzero = squared > torch.finfo(squared.dtype).tiny
    return vectors * torch.where(nonzero, squared, 1.0).rsqrt() * nonzero


def _relation_log_probs(states: Tensor, columns: Tensor, relation_heads: int, normalization: str) -> Tensor:
    """Log-softmax over the valid columns of `A A^T / scale`: `[B, A_r, T, T]` float32."""
    vectors = regroup_heads(states.float(), relation_heads)
    if normalization == "cosine":
        vectors = _unit_vectors(vectors)
        scale = 1.0
    else:
        scale = math.sqrt(vectors.shape[-1])
    scores = vectors @ vectors.transpose(-1, -2) / scale
    # The smallest number instead of -inf: a row of padding without any valid column must stay finite.
    return F.log_softmax(scores.masked_fill(~columns, torch.finfo(scores.dtype).min), dim=-1)


def _relation_kl_sum(
    teacher: Tensor, student: Tensor, rows: Tensor, columns: Tensor, relation_heads: int, normalization: str
) -> Tensor:
    # Small differences of probabilities, multiplied by a coefficient of 1e5: never in half precision.
    with torch.autocast(student.device.type, enabled=False):
        with torch.no_grad():
            log_t = _relation_log_probs(teacher, columns, relation_heads, normalization)
        log_s = _relation_log_probs(student, columns, relation_heads, normalization)
        divergence = (log_t.exp() * (log_t - log_s)).masked_fill(~columns, 0.0).sum(-1)
        return divergence.masked_fill(~rows[:, None, :], 0.0).sum()


def attention_relation_loss(
    teacher_states: tuple[Tensor, Tensor, Tensor],
    student_states: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor,
    relation_heads: int,
    normalization: RelationNormalization = "cosine",
    causal: bool = False,
) -> RelationLossSums:
    """`sum over rows of KL(R_teacher || R_student)`, for Q, K and V of one layer.

    Source: arXiv 2510.13998, stage 3 (`L_AD`), after MiniLMv2 (arXiv 2012.15828). For A in {Q, K, V}, regrouped
    to `[B, A_r, T, d_r]`:

    - `"cosine"`: every vector of A is L2-normalised, `R = softmax(A A^T)`. Its loss is the mean over the
      `B * A_r * T` rows, *divided by (layers * A_r)*, summed over Q, K, V: what the published coefficients
      (gamma = 1e5 for classification, 1e3 for summarisation) belong to.
    - `"scaled_dot"`: `R = softmax(A A^T / sqrt(d_r))`. Its loss is the mean over the rows, divided by *layers*,
      summed over Q, K, V (the paper's equation).

    The coefficients of the two are not interchangeable: cosine scores lie in [-1, 1], so both relations are nearly
    uniform and their divergence is orders of magnitude smaller, and it is divided by A_r once more.
    `relation_divisor` gives both divisions; this function returns the bare sum.

    Padding is left out of rows and of columns. Everything is computed in float32, outside autocast, in blocks of
    sequences which are computed again in the backward pass, so that at most a few `[block, A_r, T, T]` tensors are
    alive at a time.

    Args:
        teacher_states: Q, K, V, each `[B, H, T, d]`; heads and widths may differ among the three (grouped queries)
            and from the student's. No gradient flows into them.
        student_states: Q, K, V, each `[B, H', T, d']`.
        attention_mask: `[B, T]`, nonzero for real tokens.
        relation_heads: `A_r`; it must divide `H * d` of all six.
        normalization: see above.
        causal: let row `i` relate only to columns `j <= i`, as the models' attention does.

    Returns:
        `RelationLossSums(kl, rows)`. A batch without any valid token gives zeros whose gradient is zero.

    Raises:
        ValueError: unknown `normalization`, widths that `relation_heads` does not divide, or shapes that differ.
    """
    if normalization not in ("cosine", "scaled_dot"):
        raise ValueError(f"relation normalization must be 'cosine' or 'scaled_dot', got {normalization!r}")
    widths = {
        f"{model} {name}": state_width(states)
        for model, triple in (("teacher", teacher_states), ("student", student_states))
        for name, states in zip("QKV", triple, strict=True)
    }
    if relation_heads < 1 or any(width % relation_heads for width in widths.values()):
        listing = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"relation_heads={relation_heads} must divide every width (heads * head_dim): {listing}; "
            f"{largest_relation_heads(list(widths.values()))} would do"
        )
    batch, length = attention_mask.shape
    for states in (*teacher_states, *student_states):
        if (states.shape[0], states.shape[2]) != (batch, length):
            raise ValueError(
                f"attention states of shape {tuple(states.shape)} ([B, heads, T, d]) do not fit an attention mask of "
                f"shape {(batch, length)}"
            )

    device = student_states[0].device
    rows = attention_mask.to(device=device, dtype=torch.bool)
    columns = rows[:, None, None, :]
    if causal:
        columns = columns & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    block = max(1, _RELATION_BLOCK_ELEMENTS // max(1, relation_heads * length * length))
    total = torch.zeros((), device=device)
    for teacher, student in zip(teacher_states, student_states, strict=True):
        teacher = teacher.detach().to(device)
        for start in range(0, batch, block):
            part = slice(start, start + block)
            total = total + checkpoint(
                _relation_kl_sum,
                teacher[part],
                student[part],
                rows[part],
                columns[part],
                relation_heads,
                normalization,
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return RelationLossSums(total, rows.sum() * relation_heads)


def hidden_state_loss(teacher_states: Sequence[Tensor], student_states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """`sum over layers and tokens of |s - t|^2 / |t|^2`: the relative squared error of what layers hand on.

    Hidden states as a target are TinyBERT's (arXiv 1909.10351, section 3; there with a learned projection, here between
    equal widths). A residual stream grows with depth and a few tokens outweigh all others in it; dividing by the teacher's
    square lets every token of every layer count the same.

    Args:
        teacher_states: one `[B, T, H]` a layer. No gradient flows into them.
        student_states: their counterparts, of the same shapes.
        mask: `[B, T]`, nonzero for the tokens that count.

    Returns:
        Scalar float32. Without any token it is zero, and so is its gradient.

    Raises:
        ValueError: numbers of layers or shapes differ.
    """
    if len(teacher_states) != len(student_states):
        raise ValueError(f"{len(student_states)} layers of the student and {len(teacher_states)} of the teacher")
    # Found once: on an accelerator the search waits for everything before it.
    rows = mask.reshape(-1).nonzero().squeeze(-1)
    total = torch.zeros((), device=mask.device)
    # Squares of a residual stream overflow in half precision.
    with torch.autocast(mask.device.type, enabled=False):
        for teacher, student in zip(teacher_states, student_states, strict=True):
            if teacher.shape != student.shape:
                raise ValueError(
                    f"hidden states of shape {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher) cannot "
                    "be compared: set hidden_loss_weight=0"
                )
            target = teacher.detach().flatten(0, 1)[rows].float()
            size = target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
            total = total + ((student.flatten(0, 1)[rows].float() - target).square().sum(-1) / size).sum()
    return total


def relation_divisor(normalization: RelationNormalization, layers: int, relation_heads: int) -> int:
    """What the mean over rows, summed over Q, K, V and layers, is divided by: see `attention_relation_loss`."""
    return layers * relation_heads if normalization == "cosine" else layers
