"""What a run gives: scores, sizes, speeds, paths; as JSON, as a table and as a page."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files.json_files import read_json
from ..files.model_folder import RESULT_FILE
from ..files.weight_files import find_weight_files
from ..pages.figures import Point, plot_bars, plot_panels, plot_points
from ..pages.html import image, write_page
from ..pages.tables import format_score, html_table, text_table
from ..report.loss_labels import loss_names, loss_units
from ..verify.packed_tensors import packed_layers
from ..verify.verify_page import draw_layers
from .progress import duration
from .store import write_json


PAGE = "report.html"
# Names of models in the table: the full-precision one as it came, the final student, and what is ternary without the recipe.
BASE_ROW = "base model"
PACKED_ROW = "ternary student, packed"
COMPARE_ROW = "BitNet-SFT (no recipe)"
QUALITY, LAYERS = "quality.png", "packed_layers.png"

_LOSSES = (
    "On the rows that are trained on, while they are. These curves do not rank the models: a student has learned from the teacher's "
    "distributions besides the labels, and from plain text before them where there was any, so that its cross entropy may end below the "
    "teacher's although it is right less often about rows that neither has seen. Those are what the scores above are about."
)


@dataclass
class Row:
    """A model of the final table.

    Attributes:
        score: see `Score`; on the evaluation split.
        bytes: of its weights on disk.
        final: whether it would be used as it is; a trainable student would not.
    """

    name: str
    score: dict[str, Any]
    bytes: int | None = None
    tokens_per_second: float | None = None
    final: bool = True


@dataclass(frozen=True)
class Written:
    """Answers to one prompt."""

    prompt: str
    answer: str
    teacher: str
    student: str


@dataclass
class RecipeResult:
    """Everything that a run measured.

    Attributes:
        output: the run's folder.
        settings: that were given.
        numbers: of the effort, after overrides and budget.
        data: one line on the examples; `rows`: what became of the training rows.
        table: the models, in order.
        paths: `teacher`, `student` (trainable), `packed`, `report`.
        gap: of the final student to its teacher, on held-out training rows.
        tries: of the warm start and of the distillation: steps (a window) and what was left.
        outlook: of both, what twice the steps would probably close; `None`: unknown.
        choices: each decision and why.
        kept: projections that stayed in full precision.
        plan: that was made before.
        seconds: of each stage, in this run or in the one that it goes on from.
        machine: where the packed student was evaluated, and when.
        timed_on: where speeds were measured, if they were.
        places: of the settings that named files or folders, these in full: then they are no ids on the Hub.
        curves: losses of each training.
        notes: further sentences.
        written: what was asked, the true answer, and what teacher and packed student wrote, if any was asked for.
    """

    output: Path
    settings: dict[str, Any]
    numbers: dict[str, Any]
    data: str
    rows: dict[str, int]
    table: list[Row] = field(default_factory=list)
    paths: dict[str, Path] = field(default_factory=dict)
    gap: dict[str, Any] = field(default_factory=dict)
    tries: list[dict[str, Any]] = field(default_factory=list)
    outlook: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    timed_on: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each model of the table."""
        return {row.name: row.score["value"] for row in self.table}

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["output"] = str(self.output)
        values["paths"] = {name: str(path) for name, path in self.paths.items()}
        return {**values, "total_seconds": self.total_seconds}

    @classmethod
    def load(cls, folder: str | Path) -> RecipeResult:
        """The result of a finished run.

        Args:
            folder: its `output_dir`.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: its file is damaged.
        """
        file = Path(folder) / RESULT_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no finished run: it has no {RESULT_FILE}")
        values = {
            name: value for name, value in read_json(file).items() if name in {each.name for each in fields(cls)}
        }
        return cls(
            **{
                **values,
                "output": Path(folder),
                "table": [Row(**row) for row in values["table"]],
                "paths": {name: Path(path) for name, path in values["paths"].items()},
                "written": [Written(**each) for each in values.get("written", ())],
            }
        )

    # ---- For people ----

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table."""
        speed = any(row.tokens_per_second for row in self.table)
        metric = self.table[0].score["metric"]
        header = ["", metric.replace("_", " "), "on disk", *(["tokens/s on this CPU"] if speed else [])]
        rows = []
        chance = self.table[0].score["chance"]
        by_chance = {"most frequent answer": chance, "random answer": self.table[0].score["more"].get("random_level")}
        for name, value in by_chance.items():
            if value is not None:
                rows.append([name, format_score(metric, value, None), "", *([""] if speed else [])])
        for row in self.table:
            size = "" if row.bytes is None else f"{row.bytes / 1e6:.1f} MB"
            rate = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
            score = format_score(row.score["metric"], row.score["value"], row.score["stderr"])
            rows.append([row.name, score, size, *([rate] if speed else [])])
        return header, rows

    def summary(self) -> str:
        """The table, the gap and the outlook as text."""
        header, rows = self.cells()
        return "\n".join([text_table([header, *rows], numbers=False), "", *self.sentences()])

    def sentences(self) -> list[str]:
        """What is left, and what more time would probably buy."""
        loss, accuracy = self.gap["loss"], self.gap["accuracy"]
        lines = [
            f"{self.table[0].score['n']} rows of the evaluation split, ± one standard error. Against its teacher, on {self.gap['n']} held-out "
            f"training rows, the student is {abs(loss['value']):.3f} ± {loss['stderr']:.3f} nats {_side(-loss['value'])} in loss and "
            f"{100 * abs(accuracy['value']):.1f} ± {100 * accuracy['stderr']:.1f} points {_side(accuracy['value'])} in accuracy; "
            f"{100 * self.gap['agreement']:.1f} % of their first choices agree."
        ]
        # (Advice, so surer than one standard error; and of a teacher that was fine-tuned here.)
        if accuracy["value"] > 2 * accuracy["stderr"] and "teacher" in self.curves:
            lines.append(
                "A student that is better than its teacher could learn more from a better one: more teacher_examples, other "
                "teacher_learning_rates, or a teacher of your own."
            )
        for title, outlook in self.outlook.items():
            what = {"start": "warm start", "distillation": "distillation"}[title]
            if title == "start" and not self.numbers["window_steps"]:
                continue
            if not any(each["what"] == title and each["steps"] for each in self.tries):
                lines.append(f"There was no {what}.")
            elif outlook is not None and outlook["left"] <= 0:
                lines.append(f"The {what} left no gap that twice of it could close.")
            elif outlook is None:
                lines.append(self._after_one_length(title, what))
            else:
                unit = "steps a window" if title == "start" else "steps"
                lines.append(
                    f"Twice the {what} ({outlook['effort']} {unit}) would probably close {outlook['closes']:.3f} ± {outlook['stderr']:.3f} of the "
                    f"{outlook['left']:.3f} nats that were left after it, if gaps go on to shrink as they did."
                )
        return [*lines, *self.notes]

    def _after_one_length(self, title: str, what: str) -> str:
        """What is known of twice a stage of which there was one length: no more than what was left after it."""
        left = [each for each in self.tries if each["what"] == title][-1]["loss"]
        text = f"{left['value']:.3f} ± {left['stderr']:.3f} nats"
        if left["value"] <= left["stderr"]:
            return f"The {what} left no gap that can be told from none ({text}): twice of it could close none."
        option = {"start": "extra_doublings 1", "distillation": "distill_rounds 2"}[title]
        return (
            f"Twice the {what} could close {text} at most, which were left after it. How much it would is not known: there was one length of it "
            f"(--{option} tries another)."
        )

    @property
    def picture(self) -> Path:
        """The picture of quality against size and speed."""
        return (self.output / PAGE).with_suffix("") / QUALITY

    def draw_scores(self, file: Path) -> Path:
        """Score against size on disk, with the speed, of the models that would be used as they are; of all, where sizes are unknown. A
        base model is not among them where there is a teacher: it has not learned the task."""
        metric = self.table[0].score["metric"].replace("_", " ")
        shares = all(abs(row.score["value"]) <= 1 for row in self.table)
        scale, label = (100, f"{metric}, %") if shares else (1, metric)
        title = f"{self.table[0].score['n']} rows of the evaluation split, ± one standard error"
        points = [
            Point(row.name, row.bytes / 1e6, scale * row.score["value"], scale * row.score["stderr"], _note(row))
            for row in self.table
            if row.final and row.bytes is not None and row.name != BASE_ROW
        ]
        if len(points) < 2:
            values = {row.name: scale * row.score["value"] for row in self.table}
            return plot_bars(title, file, values, label)
        return plot_points(title, file, points, "size on disk, MB", label)

    def write(self, draw: bool = True) -> None:
        """`result.json` and the page in the run's folder.

        Args:
            draw: the figures; otherwise those are shown that were drawn before.
        """
        page = self.output / PAGE
        self.paths["report"] = page
        write_json(self.output / RESULT_FILE, self.to_dict())
        figures = page.with_suffix("")
        figures.mkdir(exist_ok=True)
        quality = figures / QUALITY
        header, rows = self.cells()
        parts = [
            f"<p>{html.escape(self.data)}</p>",
            "<h2>Scores</h2>",
            html_table(header, rows),
            *(f"<p>{html.escape(line)}</p>" for line in self.sentences()),
            image(self.draw_scores(quality) if draw else quality),
            "<h2>Choices</h2>",
            "<p>Made on held-out training rows; the evaluation split decided nothing.</p>",
            html_table(["", ""], [[str(number), line] for number, line in enumerate(self.choices, 1)]),
            "<h2>Rows</h2>",
            html_table(["training rows", ""], [[name, f"{count:,}"] for name, count in self.rows.items()]),
        ]
        if self.written:
            answers = [[each.prompt, each.answer, each.student, each.teacher] for each in self.written]
            parts += [
                "<h2>The packed student at work</h2>",
                html_table(["prompt", "true answer", "packed student", "teacher"], answers),
                "<p>The first rows of the evaluation split, no selection; the most likely token each time.</p>",
            ]
        if self.curves:
            parts += ["<h2>Training losses</h2>", f"<p>{_LOSSES}</p>"]
        for title, curve in self.curves.items():
            panels: list[tuple[str, Any]] = []
            for name, label in loss_names().items():
                points = [(entry["step"], float(entry[name])) for entry in curve if name in entry]
                if points:
                    panels.append((loss_units()[name], {label: tuple(zip(*points, strict=True))}))
            if panels:
                parts += [f"<h3>{html.escape(title)}</h3>"]
                file = figures / f"{''.join(c if c.isalnum() else '_' for c in title)}.png"
                parts += [image(plot_panels("Training losses", file, panels) if draw else file)]
        layers = figures / LAYERS
        if draw and "packed" in self.paths:
            draw_layers(list(packed_layers(find_weight_files(self.paths["packed"]))), layers)
        if layers.is_file():
            parts += ["<h2>The packed layers</h2>", image(layers)]
        expected = {stage["title"]: stage["seconds"] for stage in self.plan.get("stages", [])}
        times = [
            [title, duration(expected[title]) if title in expected else "", duration(seconds)]
            for title, seconds in self.seconds.items()
        ]
        parts += ["<h2>Time</h2>", html_table(["stage", "planned", "taken"], times)]
        settings = [[name, str(value)] for name, value in {**self.settings, **self.numbers}.items()]
        parts += ["<h2>Settings</h2>", html_table(["", ""], settings)]
        parts += ["<h2>Machine</h2>", html_table(["", ""], [[k, str(v)] for k, v in self.machine.items()])]
        write_page(page, self.output.resolve().name, parts)


def _side(lead: float) -> str:
    return "ahead" if lead > 0 else "behind"


def _note(row: Row) -> str:
    """Size and speed of a model, as a picture says them."""
    speed = "" if row.tokens_per_second is None else f", {row.tokens_per_second:,.0f} tokens/s"
    size = "" if row.bytes is None else f"{row.bytes / 1e6:.1f} MB"
    return f"{size}{speed}".removeprefix(", ")
