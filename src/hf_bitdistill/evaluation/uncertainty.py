"""Standard errors: how far a score on these examples may be from the score on all examples of their kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


# Resamples of a metric that is no mean over examples. The error of a standard error from 200 is five per cent.
_RESAMPLES = 200


def standard_errors(
    metric: str, predictions: Sequence[Any], references: Sequence[Any], **options: Any
) -> dict[str, float]:
    """One standard error of each value that a metric returns.

    A mean over examples has the deviation of the examples' values divided by the root of their number; F1 and Matthews' correlation are
    no such means: they are computed again on resamples of the examples (bootstrap, always the same ones).

    Args:
        metric: A name for :func:`.metrics.get_metric`.
        predictions, references: As ``compute`` takes them.
        options: Of ``compute``.
    """
    import numpy as np

    from .metrics import each_exact_match, each_rouge, get_metric

    if metric == "accuracy":
        each = {"accuracy": [p == r for p, r in zip(predictions, references, strict=True)]}
    elif metric == "exact_match":
        each = {"exact_match": each_exact_match(predictions, references)}
    elif metric == "rouge":
        each = each_rouge(predictions, references, **options)
    else:
        generator = np.random.default_rng(0)
        pairs = np.array([predictions, references])
        compute = get_metric(metric).compute
        draws = [pairs[:, generator.integers(pairs.shape[1], size=pairs.shape[1])] for _ in range(_RESAMPLES)]
        values = [compute(predictions=p.tolist(), references=r.tolist(), **options) for p, r in draws]
        return {name: float(np.std([value[name] for value in values], ddof=1)) for name in values[0]}
    return {name: _of_mean(np.asarray(values, dtype=float)) for name, values in each.items()}


def _of_mean(values: Any) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def ratio_error(values: Sequence[float], weights: Sequence[float]) -> float:
    """One standard error of a ratio of sums, ``sum(values) / sum(weights)``, over rows that are independent of each other. NaN of one row."""
    if len(values) < 2:
        return math.nan
    ratio = sum(values) / sum(weights)
    squares = sum((value - ratio * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    return math.sqrt(squares) / sum(weights)
