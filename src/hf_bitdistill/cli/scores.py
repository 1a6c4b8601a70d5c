"""Scores for people: a few lines beside the JSON that programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


_ERROR = "_stderr"
# Scores that are shares of one: shown per cent.
_SHARES = ("accuracy", "f1", "exact_match", "rouge", "token_accuracy")


def readable(result: Mapping[str, Any]) -> str:
    """What `evaluate_task` or `perplexity` returned, a line a score, with one standard error where there is one.

    Args:
        result: its values by name; a score has its standard error under its name and `_stderr`.
    """
    scores = [name.removesuffix(_ERROR) for name in result if name.endswith(_ERROR)]
    scores += [name for name in ("perplexity", "nll_per_token") if name in result and name not in scores]
    rows = []
    for name in scores:
        share = name.startswith(_SHARES)
        rows.append([name, _number(result[name], share), _plus_minus(result.get(name + _ERROR), share)])
    if result.get("chance_level") is not None:
        rows.append(["the most frequent class", _number(result["chance_level"], True), ""])
        rows.append(["a class at random", _number(result["random_level"], True), ""])
    if not rows:
        return ""
    widths = [max(len(row[at]) for row in rows) for at in range(2)]
    lines = [f"{name:<{widths[0]}}  {value:>{widths[1]}}  {error}".rstrip() for name, value, error in rows]
    count = f"{result['n']:,} examples" if "n" in result else f"{result['tokens']:,} tokens"
    note = "; +- is one standard error" if any(row[2] for row in rows) else ""
    return "\n".join([*lines, f"{count}{note}"])


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def _plus_minus(error: float | None, share: bool) -> str:
    if error is None:
        return ""
    if error != error:
        return "+- unknown (one example)"
    return f"+- {100 * error:.1f}" if share else f"+- {error:.2g}"
