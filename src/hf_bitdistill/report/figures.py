"""Figures as PNG files. They say nothing that was not measured: no smoothing, no fitted lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# label -> (x, y)
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def loss_names() -> dict[str, str]:
    """Terms of a training loss as they are logged -> how figures call them."""
    from ..distillation.terms import TERMS

    return {"loss": "total", **{f"loss_{term.name}": term.label for term in TERMS}}


def loss_units() -> dict[str, str]:
    """Terms of a training loss as they are logged -> what their axis says."""
    from ..distillation.terms import TERMS

    return {"loss": "weighted sum of the terms", **{f"loss_{term.name}": term.unit for term in TERMS}}


def new_figure(columns: int = 1, width: float = 4.5, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with a row of axes."""
    # The object interface with the Agg canvas: no display, and the user's own matplotlib state stays as it is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save_figure(figure: Figure, title: str, file: Path) -> Path:
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, dpi=110)
    return file


def draw_curves(axes: Axes, curves: Curves, xlabel: str, ylabel: str, marker: str = "") -> None:
    """Lines with a legend."""
    for label, (x, y) in curves.items():
        # (One point is no line.)
        axes.plot(x, y, label=label, marker=marker if len(x) > 1 else ".")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def plot_panels(title: str, file: Path, panels: Sequence[tuple[str, Curves]]) -> Path:
    """One panel of curves over optimizer steps beside the other, each with what its vertical axis says."""
    figure, axes = new_figure(len(panels))
    for panel, (ylabel, curves) in zip(axes, panels, strict=True):
        draw_curves(panel, curves, "optimizer steps", ylabel)
    return save_figure(figure, title, file)


# label -> (x, y, standard error of y)
Points = Mapping[str, tuple[float, float, float]]


def plot_points(title: str, file: Path, points: Points, xlabel: str, ylabel: str) -> Path:
    """Points with their standard errors, each with its name beside it."""
    figure, (axes,) = new_figure(width=6)
    for label, (x, y, error) in points.items():
        axes.errorbar(x, y, yerr=error, fmt="o", capsize=4)
        axes.annotate(label, (x, y), textcoords="offset points", xytext=(8, -3), fontsize="small")
    axes.set_xlim(0, 1.3 * max(x for x, _, _ in points.values()))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    return save_figure(figure, title, file)


def plot_histogram(
    title: str, file: Path, bins: Sequence[tuple[int, int, int]], xlabel: str, ylabel: str, limit: tuple[str, int]
) -> Path:
    """Counts in bins of whole numbers.

    Args:
        bins: first number, last number, count.
        limit: name and place of a line.
    """
    figure, (axes,) = new_figure(width=7)
    starts = [first for first, _, _ in bins]
    axes.bar(
        starts, [count for _, _, count in bins], [last - first + 1 for first, last, _ in bins], align="edge",
        color="#4477aa", edgecolor="white",
    )  # fmt: skip
    name, place = limit
    if place <= 1.5 * bins[-1][1]:
        axes.axvline(place, color="black", linestyle=":", linewidth=1, label=f"{name} {place:,}")
        axes.legend(fontsize="small")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return save_figure(figure, title, file)


def plot_bars(title: str, file: Path, values: Mapping[str, float], ylabel: str) -> Path:
    """Bars with their values on them."""
    figure, (axes,) = new_figure(width=max(3.0, 1.4 * len(values)))
    bars = axes.bar(list(values), list(values.values()), color="#4477aa")
    axes.bar_label(bars, fmt="{:.4g}", fontsize="small")
    axes.set_ylabel(ylabel)
    axes.margins(y=0.15)
    return save_figure(figure, title, file)
