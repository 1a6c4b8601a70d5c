"""Figures as PNG files. They say nothing that was not measured: no smoothing, no fitted lines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# label -> (x, y)
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


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


def plot_panels(title: str, file: Path, panels: Sequence[tuple[str, Curves]], xlabel: str = "optimizer steps") -> Path:
    """One panel of curves beside the other, each with what its vertical axis says."""
    figure, axes = new_figure(len(panels))
    for panel, (ylabel, curves) in zip(axes, panels, strict=True):
        draw_curves(panel, curves, xlabel, ylabel)
    return save_figure(figure, title, file)


@dataclass(frozen=True)
class Point:
    """A model in a picture of quality against size.

    Attributes:
        x, y, error: its size, its score and one standard error of that.
        note: a second line beside it, such as its speed.
    """

    name: str
    x: float
    y: float
    error: float
    note: str = ""


# Okabe and Ito's colours: grey for what others are made of, then blue, orange, green.
_COLOURS = ("#555555", "#0072b2", "#d55e00", "#009e73")
# Of the height of a picture: the least distance of two names.
_NAME_HEIGHT = 0.15


def plot_points(title: str, file: Path, points: Sequence[Point], xlabel: str, ylabel: str) -> Path:
    """Points with their standard errors, each with its name and its note beside it; the first one is grey."""
    figure, (axes,) = new_figure(width=6.4, height=3.8)
    low = min(point.y - point.error for point in points)
    high = max(point.y + point.error for point in points)
    height = max(high - low, 0.02 * abs(high), 1e-9)  # (scores may be the same)
    axes.set_ylim(low - 0.25 * height, high + 0.25 * height)
    axes.set_xlim(0, 1.55 * max(point.x for point in points))
    places = name_places([point.y for point in points], 1.5 * height * _NAME_HEIGHT)
    for point, colour, place in zip(points, itertools.cycle(_COLOURS), places):
        axes.errorbar(point.x, point.y, yerr=point.error, fmt="o", capsize=4, color=colour, markersize=7)
        axes.annotate(
            f"{point.name}\n{point.note}".strip(), (point.x, place), xytext=(10, 0), textcoords="offset points",
            fontsize="small", va="center", color=colour,
        )  # fmt: skip
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return save_figure(figure, title, file)


def name_places(heights: Sequence[float], least: float) -> list[float]:
    """Where names stand beside points: at their heights, moved apart where they would be closer than the least distance."""
    places = list(heights)
    order = sorted(range(len(places)), key=lambda index: places[index])
    for _ in places:
        for lower, upper in itertools.pairwise(order):
            short = least - (places[upper] - places[lower])
            if short > 0:
                places[lower] -= short / 2
                places[upper] += short / 2
    return places


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
