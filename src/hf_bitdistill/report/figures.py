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


def draw_curves(axes: Axes, curves: Curves, xlabel: str = "step", ylabel: str = "", marker: str = "") -> None:
    """Lines with a legend."""
    for label, (x, y) in curves.items():
        axes.plot(x, y, label=label, marker=marker)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def plot_panels(title: str, file: Path, panels: Sequence[Curves]) -> Path:
    """One panel of curves beside the other."""
    figure, axes = new_figure(len(panels))
    for panel, curves in zip(axes, panels, strict=True):
        draw_curves(panel, curves)
    return save_figure(figure, title, file)


def plot_bars(title: str, file: Path, values: Mapping[str, float], ylabel: str) -> Path:
    """Bars with their values on them."""
    figure, (axes,) = new_figure(width=max(3.0, 1.4 * len(values)))
    bars = axes.bar(list(values), list(values.values()), color="#4477aa")
    axes.bar_label(bars, fmt="{:.4g}", fontsize="small")
    axes.set_ylabel(ylabel)
    axes.margins(y=0.15)
    return save_figure(figure, title, file)
