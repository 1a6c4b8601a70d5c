"""Scores for people: a few lines beside the JSON that programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..pages.tables import is_share


if TYPE_CHECKING:
    from ..evaluation.score_record import Record

_ERROR = "_stderr"


def readable(result: Mapping[str, Any]) -> str:
    """What `evaluate_task` or `perplexity` returned, a line a score, with one standard error where there is one.

    Args:
        result: its values by name; a score has its standard error under its name and `_stderr`.
    """
    scores = [name.removesuffix(_ERROR) for name in result if name.endswith(_ERROR)]
    scores += [name for name in ("perplexity", "nll_per_token") if name in result and name not in scores]
    rows = []
    for name in scores:
        share = is_share(name)
        rows.append([name, _number(result[name], share), _plus_minus(result.get(name + _ERROR), share)])
    share = bool(scores) and is_share(scores[0])
    if result.get("chance_level") is not None:
        what = "class" if "random_level" in result else "token" if "chance_perplexity" in result else "answer"
        rows.append([f"the most frequent {what}", _number(result["chance_level"], share), ""])
    if result.get("random_level") is not None:
        rows.append(["a class at random", _number(result["random_level"], share), ""])
    if result.get("chance_perplexity") is not None:
        rows.append(["perplexity of token frequencies", _number(result["chance_perplexity"], False), ""])
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


def agreement(before: Record, now: Record) -> str:
    """Whether a new measurement found what was recorded."""
    name = next(iter(before.metrics), None)
    if name is None or name not in before.scores:
        return ""
    share = is_share(name)
    error = _plus_minus(before.scores.get(f"{name}_stderr"), share)
    by = f"{before.by} of {before.model}" if before.model else before.by
    recorded = f"{name} {_number(before.scores[name], share)} {error}".rstrip() + f", recorded by {by}"
    if before.rows != now.rows or _asking(before) != _asking(now):
        what = "on other rows" if before.rows != now.rows else "with another prompt or head"
        return f"not compared with the {recorded}: that was measured {what}"
    found = before.agrees(now.scores)
    if all(found.values()):
        return f"agrees with the {recorded} on the same rows"
    different = ", ".join(
        f"{each} was {_number(before.scores[each], is_share(each))}" for each, same in found.items() if not same
    )
    return (
        f"DOES NOT AGREE with the {recorded} on the same rows ({different}): these are other weights, or they compute otherwise (here: "
        f"{now.model})"
    )


def _asking(record: Record) -> tuple[Any, ...]:
    how = record.how
    return () if how is None else (how.task, how.head, how.use_chat_template, how.max_length)
