"""The arithmetic of BitNet b1.58: ternary weights, int8 activations, and the linear layer made of them.

Pure functions, no modules. Notation: `R` output features (rows), `C` input features (columns), `G` groups of columns.

Source of the formulas: *The Era of 1-bit LLMs* (arXiv 2402.17764) and *BitNet Distillation* (arXiv 2510.13998, section 2).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache_pieces import is_plain, row_pieces, scratch_for
from .straight_through import StraightThrough


MIN_SCALE = 1e-5
"""Lower clamp of the absmean of a weight and of the absmax of a token."""

INT8_UNIT = 2.0**-7
"""Integers enter a floating-point product as x_q / 128: exact in every float format, and it keeps float16 from overflowing
(|accumulator| <= C instead of 128 * C)."""

# With more, results of all groups at once would take more memory than starting their products costs time.
_FEW_TOKENS = 32

# float32 adds integers exactly below 2^24, and |x_q . W_t| <= 128 * C.
_MAX_EXACT_COLUMNS = 2**24 // 128


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Of sums whose last bits matter: float64, or float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def num_groups(columns: int, group_size: int | None) -> int:
    """Number of column groups of a row (the last may be short); 1 without grouping."""
    return 1 if group_size is None else math.ceil(columns / group_size)


def weight_scale_shape(rows: int, columns: int, granularity: str, group_size: int | None = None) -> tuple[int, ...]:
    """Shape of `weight_scale`: `[1]` ("tensor"), `[R]` ("row") or `[R, G]` ("group")."""
    if granularity == "tensor":
        return (1,)
    if granularity == "row":
        return (rows,)
    return (rows, num_groups(columns, group_size))


def group_counts(columns: int, group_size: int, device: torch.device) -> Tensor:
    """Columns of each group of a row, float32 `[G]`."""
    groups = num_groups(columns, group_size)
    counts = torch.full((groups,), group_size, dtype=torch.float32, device=device)
    counts[-1] = columns - (groups - 1) * group_size
    return counts


# torch shares a sum with a single result among its threads where it is this long at least (32768 elements, today); each thread's part is
# summed on its own, so that the last bits depend on their number. Of several results each is summed by one thread, in one order.
_MAY_BE_SHARED = 4096


def row_sums(values: Tensor) -> Tensor:
    """`[R, C]` -> `[R]`, the same bits whatever the number of threads and the strides."""
    values = values.contiguous()
    if values.shape[0] == 1 and values.shape[1] >= _MAY_BE_SHARED:
        return values.expand(2, -1).sum(dim=1)[:1]
    return values.sum(dim=1)


def _total(sums: Tensor) -> Tensor:
    """`[R]` -> `[1]`, in [`accumulation_dtype`], likewise."""
    sums = sums.to(accumulation_dtype(sums.device))
    return sums.sum(dim=0, keepdim=True) if len(sums) < _MAY_BE_SHARED else row_sums(sums.unsqueeze(0))


def sum_per_scale(values: Tensor, granularity: str = "tensor", group_size: int | None = None) -> Tensor:
    """Sums of `values` `[R, C]` over the elements that share one scale: `[1]`, `[R]` or `[R, G]`, dtype of `values`.

    The order of summation depends on the shape alone: neither on the number of threads nor on strides. For "tensor" it is the sum of
    the sums of the rows, an order that whoever has only some of the rows can keep.
    """
    if granularity == "tensor":
        return _total(row_sums(values)).to(values.dtype)
    if granularity == "row":
        return row_sums(values)
    rows, columns = values.shape
    size = cast(int, group_size)
    groups = num_groups(columns, size)
    padded = F.pad(values.contiguous(), (0, groups * size - columns)).view(rows * groups, size)
    return row_sums(padded).view(rows, groups)


def scale_of_row_sums(sums: Tensor, columns: int) -> Tensor:
    """The one scale of a matrix, float32 `[1]`, from the sums `[R]` of the magnitudes in its rows (see [`absmean_scale`])."""
    return (_total(sums) / (len(sums) * columns)).float().clamp(min=MIN_SCALE)


def _row_sums_of_magnitudes(weight: Tensor) -> Tensor:
    """`row_sums(|W|)` in float32, without a gradient, and without as much memory as the weight takes."""
    if not is_plain(weight):
        return row_sums(weight.abs().float())
    sums = weight.new_empty(weight.shape[0], dtype=torch.float32)
    scratch = scratch_for(weight)
    for rows in row_pieces(weight):
        sums[rows] = row_sums(scratch[: rows.stop - rows.start].copy_(weight[rows]).abs_())
    return sums


def absmean_scale(
    weight: Tensor, granularity: str = "tensor", group_size: int | None = None, *, differentiable: bool = False
) -> Tensor:
    """`gamma = max(mean(|W|), 1e-5)` over what shares a scale, summed in the order of [`sum_per_scale`].

    Args:
        weight: `[R, C]`, any floating dtype; the mean is taken in float32, over the sums of rows in float64.
        granularity: `"tensor"`, `"row"` or `"group"`.
        group_size: columns per group, for `"group"`.
        differentiable: keep the gradient to `weight`; otherwise the scale is a constant.

    Returns:
        float32 `[1]`, `[R]` or `[R, G]`.
    """
    if granularity != "group" and not differentiable:
        sums = _row_sums_of_magnitudes(weight.detach())
        if granularity == "row":
            return (sums / weight.shape[1]).clamp(min=MIN_SCALE)
        return scale_of_row_sums(sums, weight.shape[1])
    magnitude = (weight if differentiable else weight.detach()).abs().float()
    if granularity == "tensor":
        return scale_of_row_sums(row_sums(magnitude), weight.shape[1])
    if granularity == "row":
        scale = row_sums(magnitude) / weight.shape[1]
    else:
        scale = sum_per_scale(magnitude, "group", group_size) / group_counts(
            weight.shape[1], cast(int, group_size), weight.device
        )
    return scale.clamp(min=MIN_SCALE)


def expand_weight_scale(weight_scale: Tensor, columns: int, group_size: int | None = None) -> Tensor:
    """`weight_scale` of any granularity as a tensor that broadcasts against `[R, C]`."""
    if weight_scale.ndim == 2:
        return weight_scale.repeat_interleave(cast(int, group_size), dim=1)[:, :columns]
    return weight_scale.view(-1, 1)


def effective_weight(codes: Tensor, weight_scale: Tensor, group_size: int | None = None) -> Tensor:
    """The matrix that ternary codes and their scales stand for, `gamma * W_t`.

    Args:
        codes: `[R, C]` in {-1, 0, 1}.
        weight_scale: `[1]`, `[R]` or `[R, G]`.

    Returns:
        float32 `[R, C]`.
    """
    return codes.float() * expand_weight_scale(weight_scale.float(), codes.shape[1], group_size)


def ternary_codes(weight: Tensor, weight_scale: Tensor, group_size: int | None = None) -> Tensor:
    """The codes of [`ternarize`] under given scales: float32 `[R, C]`, each from its own weight and scale alone."""
    divisor = expand_weight_scale(weight_scale, weight.shape[1], group_size)
    return torch.div(weight.detach().float(), divisor).round_().clamp_(-1, 1)


def ternarize(weight: Tensor, granularity: str = "tensor", group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """`W_t = clip(round(W / gamma), -1, 1)`, rounding half to even.

    Args:
        weight: `[R, C]`, any floating dtype.

    Returns:
        `(codes, weight_scale)`: float32 `[R, C]` with values in {-1, 0, 1}, and `gamma` as in [`absmean_scale`].
    """
    weight_scale = absmean_scale(weight, granularity, group_size)
    return ternary_codes(weight, weight_scale, group_size), weight_scale


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token absmax int8 quantisation: `s = 127 / max(max|x|, 1e-5)`, `x_q = clip(round(x * s), -128, 127)`.

    Args:
        x: `[..., C]`, any floating dtype; computed in float32.

    Returns:
        `(x_q, s)`: float32 `[..., C]` with integer values in [-128, 127], and float32 `[..., 1]`.
    """
    x = x.detach().float()
    s = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp_(min=MIN_SCALE)
    return torch.mul(x, s).round_().clamp_(-128, 127), s


def _product(x: Tensor, weight: Tensor, compute_dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(compute_dtype), weight.to(compute_dtype))


def _group_by_group(
    values: Tensor, codes: Tensor, weight_scale: Tensor, group_size: int, dtype: torch.dtype
) -> Tensor:
    """Sum over groups of products and their scales, in the order of the groups: float32 `[..., R]`."""
    y = values.new_zeros((*values.shape[:-1], codes.shape[0]), dtype=torch.float32)
    for group, start in enumerate(range(0, codes.shape[1], group_size)):
        stop = start + group_size
        y += _product(values[..., start:stop], codes[:, start:stop], dtype) * weight_scale[:, group]
    return y


def _all_groups(values: Tensor, codes: Tensor, weight_scale: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """[`_group_by_group`] in one product, whose results are all in memory at once: an accelerator takes longer to start a product of few
    tokens than to compute it."""
    missing = -codes.shape[1] % group_size
    values, codes = (
        F.pad(t.to(dtype), (0, missing)).view(-1, weight_scale.shape[1], group_size) for t in (values, codes)
    )
    # [G, tokens, g] @ [G, g, R]
    sums = values.transpose(0, 1) @ codes.permute(1, 2, 0)
    return (sums * weight_scale.T[:, None]).sum(dim=0)


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype that `F.linear` would give its result, autocast included."""
    device = x.device.type
    if device == "meta":  # (no autocast there)
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def product_dtype(device: torch.device, out_dtype: torch.dtype) -> torch.dtype:
    """In which integers are multiplied where the result is `out_dtype`."""
    # Half-precision matrix units hold the integers exactly and only round the result, as for any half-precision layer;
    # a CPU gains nothing from that, so there the integer product stays exact.
    return out_dtype if device.type != "cpu" and out_dtype in (torch.bfloat16, torch.float16) else torch.float32


def ternary_linear(
    x: Tensor,
    codes: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int | None = None,
    activation_bits: int | None = 8,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`y = (x_q . W_t) * gamma * (1 / s) + bias`, the forward pass that every backend must reproduce.

    The native kernels evaluate it in this order, so on a CPU in float32 they return the same bits.

    Args:
        x: `[..., C]`.
        codes: `[R, C]` with values in {-1, 0, 1}, any dtype.
        weight_scale: `[1]`, `[R]` or `[R, G]` float32, multiplying.
        bias: `[R]` floating point, or `None`.
        group_size: columns per group, when `weight_scale` is `[R, G]`.
        activation_bits: 8, or `None` to leave `x` in floating point.
        out_dtype: of the result; `None`: that of `x`, or the autocast dtype under autocast.

    Returns:
        `[..., R]` in `out_dtype`. On a CPU the integer products are exact.
        Differentiable in `x` (straight-through).

    Raises:
        ValueError: more than 131072 columns without groups, whose sums float32 could not hold exactly.
    """
    columns = codes.shape[1]
    if activation_bits is None:
        values, token_scale = x.float(), None
    else:
        x_q, s = quantize_activations(x)
        token_scale = s * INT8_UNIT
        values = StraightThrough.apply(x, x_q * INT8_UNIT, token_scale)
    out_dtype = out_dtype or result_dtype(x)
    dtype = product_dtype(x.device, out_dtype)
    with torch.autocast(device_type=x.device.type, enabled=False):
        if weight_scale.ndim == 2:
            few = x.device.type != "cpu" and math.prod(x.shape[:-1]) <= _FEW_TOKENS
            y = (_all_groups if few else _group_by_group)(values, codes, weight_scale, cast(int, group_size), dtype)
            y = y.view(*x.shape[:-1], codes.shape[0])
        else:
            if columns > _MAX_EXACT_COLUMNS:
                raise ValueError(
                    f"{columns} input features: sums of more than {_MAX_EXACT_COLUMNS} are not exact here."
                )
            y = _product(values, codes, dtype) * weight_scale
        if token_scale is not None:
            y = y * token_scale.reciprocal()
        if bias is not None:
            y = y + bias
    return y.to(out_dtype)


def integer_accumulators(x: Tensor, codes: Tensor, group_size: int | None = None) -> Tensor:
    """The exact integer dot products `x_q . W_t` on which all backends must agree bit for bit.

    Args:
        x: `[..., C]` floating point, quantised here.
        codes: `[R, C]` in {-1, 0, 1}.

    Returns:
        int32 `[..., R]`, or `[..., R, G]` with `group_size`.
    """
    x_q, _ = quantize_activations(x)
    # float64 is exact far beyond any width and, unlike integer matmul, has a fast kernel everywhere.
    x_q, codes = x_q.double(), codes.double()
    if group_size is None:
        return (x_q @ codes.T).to(torch.int32)
    groups = [
        x_q[..., start : start + group_size] @ codes[:, start : start + group_size].T
        for start in range(0, codes.shape[1], group_size)
    ]
    return torch.stack(groups, dim=-1).to(torch.int32)
