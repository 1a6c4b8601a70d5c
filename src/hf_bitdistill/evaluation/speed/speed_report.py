"""Measurements as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .systems import Measurement


_COLUMNS = {
    "system": lambda m: f"{Path(m.model).name} ({m.backend})",
    "decode tok/s": lambda m: f"{m.decode_tokens_per_second:.1f}",
    "prefill tok/s": lambda m: f"{m.prefill_tokens_per_second:.1f}",
    "first token ms": lambda m: f"{m.time_to_first_token * 1e3:.1f}",
    "load s": lambda m: f"{m.load_seconds:.2f}",
    "file MB": lambda m: f"{m.file_bytes / 1e6:.1f}",
    "peak RSS MB": lambda m: f"{m.peak_rss_bytes / 1e6:.0f}",
    "of it model MB": lambda m: f"{(m.peak_rss_bytes - m.base_rss_bytes) / 1e6:.0f}",
    "threads": lambda m: str(m.threads),
}


def format_table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table, one system a line."""
    rows = [list(_COLUMNS), *([column(m) for column in _COLUMNS.values()] for m in measurements)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def save_plot(measurements: Sequence[Measurement], file: Path) -> None:
    """Bars of speed and memory, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        ("decode", "tokens a second"): lambda m: m.decode_tokens_per_second,
        ("prefill", "tokens a second"): lambda m: m.prefill_tokens_per_second,
        ("memory of the model", "MB"): lambda m: (m.peak_rss_bytes - m.base_rss_bytes) / 1e6,
    }
    names = [_COLUMNS["system"](m) for m in measurements]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 1.2 + 0.6 * len(names)), squeeze=False)
    for axis, ((title, unit), value) in zip(axes[0], panels.items(), strict=True):
        bars = axis.barh(range(len(names)), [value(m) for m in measurements])
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(title)
        axis.set_xlabel(unit)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
