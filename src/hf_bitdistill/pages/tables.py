"""Tables as Markdown, as HTML and as text, and the scores in them."""

from __future__ import annotations

import html
from collections.abc import Sequence


# How the names of metrics begin.
_SHARES = ("accuracy", "f1", "exact_match", "rouge", "token_accuracy")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped. A header without any word is left out."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = [line("th", header)] if any(header) else []
    return "\n".join(["<table>", *head, *(line("td", row) for row in rows), "</table>"])


def text_table(lines: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A table for a terminal, its header the first line.

    Args:
        numbers: all columns but the first one hold numbers, which stand on the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def cell(column: int, text: str) -> str:
        return text.rjust(widths[column]) if numbers and column else text.ljust(widths[column])

    return "\n".join("  ".join(cell(column, text) for column, text in enumerate(line)).rstrip() for line in lines)


def is_share(metric: str) -> bool:
    """Whether a score is a share of one, which is shown per cent."""
    return metric.startswith(_SHARES)


def format_score(metric: str, value: float, error: float | None) -> str:
    """With its standard error, if it has one: shares per cent, others as they are."""
    if is_share(metric):
        return f"{100 * value:.1f} %" if error is None else f"{100 * value:.1f} ± {100 * error:.1f} %"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"
