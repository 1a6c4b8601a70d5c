"""A data view as text, for a terminal or a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from . import facts
from .look import DataView, Sample


_BAR = 40
# Characters of a part of an example that are shown.
_LONGEST = 700
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TRAINED, _SPECIAL, _END = "\x1b[1;32m", "\x1b[35m", "\x1b[0m"


def as_text(view: DataView, color: bool = False) -> str:
    """The whole view.

    Args:
        color: Whether trained tokens are marked by colour (a terminal's codes) instead of by brackets.
    """
    sections = [
        f"{view.source} for {view.model}",
        _section("Recognised", _pairs(facts.recognized_rows(view))),
        _section("Rows", _table(facts.SPLIT_HEADER, facts.split_rows(view)), facts.held_out_text(view)),
    ]
    mark = "in colour" if color else "in [[ ]]"
    for number, sample in enumerate(view.samples, 1):
        title = f"Example {number}: {sample.tokens:,} tokens, {sample.trained:,} trained on ({mark})"
        sections.append(_section(title, _render(sample, color)))
    split = facts.lengths_of(view)
    if split is not None:
        cuts = facts.cut_rows(view)
        sections += [
            _section("Lengths in tokens", _table(facts.LENGTH_HEADER, facts.length_rows(view))),
            _section(f"Histogram of the {split.name} rows", _bars(view, split.lengths)),
        ]
        if cuts:
            sections.append(_section("What --max_length would cut (training rows)", _table(facts.CUT_HEADER, cuts)))
    labels = facts.label_rows(view)
    if labels:
        sections.append(_section("Labels", _table(facts.LABEL_HEADER, labels)))
    sections.append(_section("Duplicates", facts.duplicate_text(view)))
    if view.recognized.task is not None:
        sections.append(_section("As a task file (--task FILE.yaml)", facts.task_file(view.recognized.task).rstrip()))
    return "\n\n".join(sections)


def visible(text: str) -> str:
    """Control characters as escapes: a terminal would obey them."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def shorten(text: str, longest: int) -> str:
    """A long text without its middle."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def _render(sample: Sample, color: bool) -> str:
    text = ""
    for at, (part, trained, special) in enumerate(sample.parts):
        part = visible(shorten(part, _LONGEST))
        if color:
            code = (_TRAINED if trained else "") + (_SPECIAL if special else "")
            text += f"{code}{part}{_END}" if code else part
        else:
            before = at > 0 and sample.parts[at - 1][1]
            after = at + 1 < len(sample.parts) and sample.parts[at + 1][1]
            text += ("[[" if trained and not before else "") + part + ("]]" if trained and not after else "")
    return text


def _bars(view: DataView, lengths: Sequence[int]) -> str:
    bins = facts.histogram(lengths)
    most = max(count for _, _, count in bins)
    width = max(len(f"{last:,}") for _, last, _ in bins)
    lines = []
    for first, last, count in bins:
        bar = "#" * max(round(_BAR * count / most), int(count > 0))
        here = "  <- max_length" if first <= view.max_length <= last else ""
        lines.append(f"{first:>{width},} to {last:>{width},}  {bar} {count:,}{here}")
    return "\n".join(lines)


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"== {title}", *(part for part in parts if part)])


def _pairs(rows: Sequence[Sequence[str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {visible(value)}".replace("\n", "\n" + " " * (width + 2)) for name, value in rows
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [list(header), *([visible(cell).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)
