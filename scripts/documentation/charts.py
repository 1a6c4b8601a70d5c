"""Pictures of recorded numbers. A picture carries a digest of its numbers, so that a test can tell one that is out of date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#c2733a", "#7a7a7a", "#5a9367", "#9a5b9d")
_WIDTH = 6.6


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one or several beside each label; points where the axis does not begin at 0.

    Args:
        labels: from top to bottom.
        series: what the bars of one colour are -> a value for each label; `None` leaves one out.
        errors: of the same form, where there are any.
        shown: how a value is written behind its bar.
        start: where the axis begins.
    """

    xlabel: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    errors: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    shown: str = "{:.1f}"
    start: float = 0.0

    def size(self) -> tuple[float, float]:
        return _WIDTH, 0.9 + len(self.labels) * (0.16 + 0.2 * len(self.series))

    def draw(self, figure: Figure) -> None:
        axes = figure.subplots()
        height = 0.8 / len(self.series)
        for index, (name, values) in enumerate(self.series.items()):
            errors = self.errors.get(name, [None] * len(values))
            for row, (value, error) in enumerate(zip(values, errors, strict=True)):
                if value is None:
                    continue
                y = row - 0.4 + height * (index + 0.5)
                label = name if name not in axes.get_legend_handles_labels()[1] else None
                if self.start:  # (a bar that does not begin at 0 exaggerates)
                    axes.errorbar(value, y, xerr=error, fmt="o", color=COLOURS[index], capsize=3, label=label)
                else:
                    axes.barh(y, value, height * 0.9, xerr=error, color=COLOURS[index], label=label)
                axes.annotate(
                    self.shown.format(value),
                    (value + (error or 0), y),
                    xytext=(7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize="small",
                )
        axes.set_yticks(range(len(self.labels)), self.labels)
        axes.invert_yaxis()
        axes.set_xlabel(self.xlabel)
        axes.margins(x=0.12)
        axes.set_xlim(left=self.start)
        if self.start:
            axes.grid(axis="y", alpha=0.3)
        _plain(axes)
        if len(self.series) > 1:
            _legend(axes)


@dataclass(frozen=True)
class Lines:
    """Curves.

    Args:
        curves: name -> x and y of its points.
        levels: horizontal lines: name -> y.
    """

    xlabel: str
    ylabel: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    levels: Mapping[str, float] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] = ()

    def size(self) -> tuple[float, float]:
        return _WIDTH, 3.6

    def draw(self, figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, (x, y)) in enumerate(self.curves.items()):
            axes.plot(x, y, label=name, color=COLOURS[index], marker="o" if len(x) < 12 else "")
        for name, level in self.levels.items():
            axes.axhline(level, color="black", linestyle=":", linewidth=1, label=name)
        if self.log_x:
            axes.set_xscale("log")
        if self.log_y:
            axes.set_yscale("log")
        if self.ticks:
            axes.set_xticks(self.ticks, [f"{tick:g}" for tick in self.ticks])
            axes.minorticks_off()
        axes.set_xlabel(self.xlabel)
        axes.set_ylabel(self.ylabel)
        axes.grid(alpha=0.3)
        _legend(axes)
        _plain(axes)


@dataclass(frozen=True)
class Point:
    """A model: what it is called, its size, its speed, its score and the standard error of that."""

    name: str
    megabytes: float
    tokens_per_second: float
    score: float
    error: float


@dataclass(frozen=True)
class Quality:
    """Scores against size and against speed, side by side.

    Args:
        points: the first one is the model that the others are made of.
    """

    ylabel: str
    points: Sequence[Point]

    def size(self) -> tuple[float, float]:
        return 7.8, 3.4

    def draw(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for index, point in enumerate(self.points):
            colour = COLOURS[2] if index == 0 else COLOURS[(index - 1) % 2]
            for axes, x, unit in ((left, point.megabytes, "MB"), (right, point.tokens_per_second, "tokens/s")):
                axes.errorbar(x, point.score, yerr=point.error, fmt="o", capsize=4, color=colour, markersize=7)
                axes.annotate(
                    f"{point.name}\n{x:,.0f} {unit}", (x, point.score), xytext=(9, 3), textcoords="offset points",
                    fontsize="small", va="center", annotation_clip=False,
                )  # fmt: skip
        names = ((left, "MB on disk"), (right, "tokens a second, one sequence"))
        for axes, (_, name), values in zip(
            (left, right),
            names,
            ([p.megabytes for p in self.points], [p.tokens_per_second for p in self.points]),
            strict=True,
        ):
            axes.set_xlim(0, 1.65 * max(values))
            axes.set_xlabel(name)
            axes.grid(alpha=0.3)
            _plain(axes)
        left.set_ylabel(self.ylabel)
        left.margins(y=0.2)


Chart = Bars | Lines | Quality


def digest(chart: Chart) -> str:
    """Of the numbers and the labels that a picture shows."""
    text = json.dumps([type(chart).__name__, asdict(chart)], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(chart: Chart, file: Path) -> None:
    """As SVG or PNG, by the file's name."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file.parent.mkdir(parents=True, exist_ok=True)
    options = {"svg.fonttype": "none", "svg.hashsalt": "hf-bitdistill", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(options):
        figure = Figure(figsize=chart.size(), layout="constrained")
        FigureCanvasAgg(figure)
        chart.draw(figure)
        about = {"Description": digest(chart)}
        figure.savefig(file, dpi=120, metadata=about | ({"Date": None} if file.suffix == ".svg" else {}))


def saved_digest(file: Path) -> str | None:
    """The digest that a picture carries."""
    if file.suffix == ".svg":
        _, found, rest = file.read_text(encoding="utf-8").partition("<dc:description>")
        return rest.partition("<")[0] if found else None
    from PIL import Image

    with Image.open(file) as image:
        return image.info.get("Description")


def _legend(axes: Axes) -> None:
    axes.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
