"""Tables as Markdown and as HTML, and the scores in them."""

from __future__ import annotations

import html
from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line("th", header), *(line("td", row) for row in rows), "</table>"])


def format_score(value: float, error: float | None) -> str:
    """Shares in per cent; what is above one (no share) as it is."""
    scale, unit = (100, " %") if abs(value) <= 1 else (1, "")
    text = f"{scale * value:.1f}"
    return f"{text}{unit}" if error is None else f"{text} ± {scale * error:.1f}{unit}"
