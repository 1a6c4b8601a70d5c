"""What a run would do and how long it would take here, from a short measured probe; and the effort that fits a budget."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from ..evaluation import share_rows
from ..machine import processes
from ..pages.tables import text_table
from .efforts import Effort, scaled
from .examples import Examples
from .progress import Progress, duration
from .settings import RecipeError, RecipeSettings
from .stages import Work


# Steps of a probed training. The first of them do not count: they get memory that the process has not had before, which costs the more
# the larger the model, and lengths for which nothing is compiled yet.
_STEPS, _COUNTED_STEPS = 6, 3
_WINDOW_STEPS, _WINDOW_BATCHES = 2, 2
# Rows that are measured and evaluated, at least, and of each process.
_MEASURED_ROWS, _WRITTEN_ROWS = 48, 4
_ROWS_EACH, _WRITTEN_EACH = 6, 1
# Of a budget: the rest is for what no probe foresees.
BUDGET_SHARE = 0.9
_FACTORS = (8.0, 4.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02, 0.01)


@dataclass
class Planned:
    """A stage that would run.

    Attributes:
        title: as the run calls it.
        steps, tokens: of training; 0 where there are none.
        seconds: expected.
        condition: on which it runs, if a budget has time for it, too; none: it surely runs.
    """

    title: str
    steps: int
    tokens: int
    seconds: float
    condition: str = ""


@dataclass
class Plan:
    """All stages.

    Attributes:
        factor: of the effort's amounts, from a budget.
    """

    stages: list[Planned] = field(default_factory=list)
    factor: float = 1.0

    @property
    def seconds(self) -> float:
        """If every stage runs."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def surely(self) -> float:
        """Without the stages that run on a condition."""
        return sum(stage.seconds for stage in self.stages if not stage.condition)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "seconds": self.seconds, "seconds_without_conditions": self.surely}

    def table(self) -> str:
        """For people."""
        rows = [("stage", "steps", "tokens", "expected")]
        for stage in self.stages:
            title = stage.title + (f" ({stage.condition})" if stage.condition else "")
            steps, tokens = (f"{value:,}" if value else "" for value in (stage.steps, stage.tokens))
            rows.append((title, steps, tokens, duration(stage.seconds)))
        total = duration(self.seconds)
        if self.surely < self.seconds:
            total = f"{duration(self.surely)} to {total}"
        rows.append(("in all", "", "", total))
        return text_table(rows)


class _Ticks(Progress):
    """A `Progress` that shows nothing and keeps the times of the steps."""

    def __init__(self, steps_per_window: int):
        super().__init__()
        self.steps_per_window = steps_per_window
        self.ticks: list[tuple[int, float]] = []

    def say(self, text: str) -> None:
        pass

    def show(self, done: int, total: int, loss: float | None = None) -> None:
        self.ticks.append((done, time.perf_counter()))

    @property
    def window_step(self) -> float:
        """Between two steps of one window, in the mean."""
        within = [
            after - before for (_, before), (done, after) in pairwise(self.ticks) if (done - 1) % self.steps_per_window
        ]
        return statistics.mean(within)


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def _scratch(within: Path | None) -> Iterator[Path]:
    """An empty folder that all processes share and that is removed afterwards."""

    def make() -> Path:
        if within is None:
            return Path(tempfile.mkdtemp())
        shutil.rmtree(within, ignore_errors=True)  # of a run that was killed
        within.mkdir(parents=True)
        return within

    folder = processes.from_first(make, "making a folder")
    try:
        yield folder
    finally:
        if processes.is_first():
            shutil.rmtree(folder, ignore_errors=True)


def probe(
    work: Work,
    source: str | Path,
    with_teacher: bool,
    with_pretraining: bool,
    scratch: Path | None = None,
    teacher: str | Path | None = None,
) -> dict[str, float]:
    """Seconds of the pieces that a run is made of, on this machine, in so many processes, with this model and examples of these lengths.
    What the model cannot be made into fails here, before any training. Called by all processes.

    Args:
        source: the full-precision model.
        with_teacher: whether a teacher will be fine-tuned.
        with_pretraining: whether there will be continual pre-training.
        scratch: a folder to work in, which is removed; every process must see it. Default: a temporary one.
        teacher: a model of the teacher's shape, where that is not the source's.
    """
    measured: dict[str, float] = {}
    numbers = work.numbers
    with _scratch(scratch) as folder:
        short = dataclasses.replace(
            work,
            numbers=dataclasses.replace(
                numbers,
                corpus_tokens=_STEPS * numbers.pretrain_batch_size * numbers.block_size,
            ),
            examples=cast(Any, _Typical(work.examples, _STEPS * numbers.batch_size)),  # (no one measures on it)
        )
        measured["load"] = _timed(lambda: work.load(source))
        ticks = _Ticks(_WINDOW_STEPS)
        windows = numbers.window_steps > 0
        start = dataclasses.replace(short, progress=ticks, corpus=None, examples=work.examples)
        student = folder / "start"
        started = time.perf_counter()
        result = start.start(source, _WINDOW_STEPS if windows else 0, student, max_batches=_WINDOW_BATCHES)
        measured["start"] = time.perf_counter() - started
        if windows:
            report = result["warm_start"]
            steps = _WINDOW_STEPS * len(report["windows"])
            measured["windows"] = len(report["windows"])
            measured["window_step"] = ticks.window_step
            measured["window_batch_size"] = result["batch_size"]
            measured["window_tokens"] = report["trained_tokens"] / steps
            measured["window_batch"] = report["batch_seconds"] / result["batches"]
            measured["start"] -= steps * ticks.window_step + report["batch_seconds"]
        measured["distill_step"] = _train_step(
            lambda progress: dataclasses.replace(short, progress=progress).distill(
                student / "model", teacher or source, 1e-5, _STEPS, folder / "distill"
            )
        )
        if with_teacher:
            measured["teacher_step"] = _train_step(
                lambda progress: dataclasses.replace(short, progress=progress).teacher(
                    source, 1e-5, _STEPS, folder / "teacher", watch=False
                )
            )
        if with_pretraining:
            measured["pretrain_step"] = _train_step(
                lambda progress: dataclasses.replace(short, progress=progress, corpus=work.corpus).pretrain(
                    student / "model", source, folder / "pretrain"
                )
            )
        model = work.load(source).eval()
        # (What the first call imports and compiles does not count.)
        few, _ = _few_rows(work.examples, 2, 2)
        with share_rows():
            few.measure(model), few.score(model)
        count = processes.world_size()
        most, most_written = max(_MEASURED_ROWS, _ROWS_EACH * count), max(_WRITTEN_ROWS, _WRITTEN_EACH * count)
        examples, rows = _few_rows(work.examples, most, most_written)
        with share_rows():
            measured["held_out_row"] = _timed(lambda: examples.measure(model)) / rows[0]
            measured["evaluation_row"] = _timed(lambda: examples.score(model)) / rows[1]
    return measured


def _train_step(run: Callable[[Progress], Any]) -> float:
    ticks = _Ticks(1 << 30)
    run(ticks)
    times = [at for _, at in ticks.ticks][-_COUNTED_STEPS - 1 :]
    return (times[-1] - times[0]) / (len(times) - 1)


class _Typical:
    """Examples with few training rows, of lengths as they come."""

    def __init__(self, examples: Examples, rows: int):
        self.train = examples.train.shuffle(seed=0).select(range(min(rows, len(examples.train))))
        self.held_out = examples.held_out.select(range(1))


def _few_rows(examples: Examples, most: int, most_written: int) -> tuple[Examples, tuple[int, int]]:
    """The examples with a few rows to measure and to evaluate, and how many."""
    written = examples.kind == "answers" and examples.task is not None
    counts = {
        "held_out": most,
        "held_out_rows": most,
        # Written token by token.
        "evaluation": most_written if written else most,
    }
    few = {}
    for name, count in counts.items():
        rows = getattr(examples, name, None)
        if rows is not None:
            few[name] = rows.select(range(min(count, len(rows))))
    return dataclasses.replace(cast(Any, examples), **few), (len(few["held_out"]), len(few["evaluation"]))


def window_schedule(numbers: Effort) -> list[int]:
    """Steps a window of each try of the warm start."""
    if not numbers.window_steps:
        return [0]
    return [numbers.window_steps << doublings for doublings in range(numbers.extra_doublings + 1)]


# Two processes that import everything and load a model.
_SPEED_SECONDS = 12.5

TEACHER, START, PRETRAIN, DISTILL, EVALUATE, COMPARE, SPEED = (
    "teacher",
    "start",
    "continual pre-training",
    "distillation",
    "pack and evaluate",
    "BitNet-SFT",
    "speed",
)


def start_title(steps: int) -> str:
    return f"{START}, {steps} steps a window" if steps else START


def rate_title(what: str, rate: float) -> str:
    """Of a short run of teacher or distillation."""
    return f"{what}, learning rate {rate:g} in short"


def further_title(what: str, number: int) -> str:
    """Of a short run at a rate beyond those of the effort; the first is 0."""
    return f"{what}, another rate in short" + (f" ({number + 1})" if number else "")


def further_rates(settings: RecipeSettings, numbers: Effort, name: str) -> int:
    """How many rates a sweep may try beyond its own.

    Args:
        name: `teacher_learning_rates` or `distill_learning_rates`.
    """
    return numbers.sweep_extensions if len(getattr(numbers, name)) > 1 and name not in settings.overrides() else 0


def round_title(number: int) -> str:
    """Of a round of distillation; the first is 0."""
    return DISTILL if number == 0 else f"{DISTILL}, round {number + 1}"


def make_plan(work: Work, settings: RecipeSettings, measured: dict[str, float], fine_tunes: bool) -> Plan:
    """The stages with the effort of `work`, and the time of each."""
    numbers, examples = work.numbers, work.examples
    mean_length = statistics.mean(map(len, examples.train["input_ids"]))
    held_out = len(examples.held_out) * measured["held_out_row"] + 2 * measured["load"]
    plan = Plan()

    def sweep(what: str, name: str, short: int, seconds: float) -> None:
        rates = getattr(numbers, name)
        tokens = round(short * numbers.batch_size * mean_length)
        if len(rates) > 1:
            plan.stages += [Planned(rate_title(what, rate), short, tokens, seconds) for rate in rates]
        for number in range(further_rates(settings, numbers, name)):
            condition = "if the best is at the edge"
            plan.stages.append(Planned(further_title(what, number), short, tokens, seconds, condition))

    if fine_tunes:
        short = work.teacher_steps(numbers.sweep_share)
        sweep(TEACHER, "teacher_learning_rates", short, short * measured["teacher_step"] + held_out)
        steps = work.teacher_steps()
        # The held-out loss is looked at now and then.
        looks = work.teacher_looks() * (len(examples.held_out) * measured["held_out_row"] + measured["load"])
        seconds = steps * measured["teacher_step"] + looks
        tokens = round(steps * numbers.batch_size * mean_length)
        plan.stages.append(Planned(TEACHER, steps, tokens, seconds + held_out))
    for number, steps in enumerate(window_schedule(numbers)):
        seconds, in_all, tokens = measured["start"], 0, 0
        if steps:
            in_all, size = int(measured["windows"]) * steps, measured["window_batch_size"]
            available = min(len(examples.train), work.start_tokens(steps) / mean_length) / size
            seconds += in_all * measured["window_step"] + min(steps, available) * measured["window_batch"]
            tokens = round(in_all * measured["window_tokens"])
        condition = "if a gap closes" if number else ""
        plan.stages.append(Planned(start_title(steps), in_all, tokens, seconds + held_out, condition))
    if settings.corpus:
        steps = work.pretrain_steps()
        tokens = steps * numbers.pretrain_batch_size * numbers.block_size
        plan.stages.append(Planned(PRETRAIN, steps, tokens, steps * measured["pretrain_step"] + held_out))
    if work.distill_steps():
        short = work.distill_steps(numbers.sweep_share)
        sweep(DISTILL, "distill_learning_rates", short, short * measured["distill_step"] + held_out)
        steps = work.distill_steps()
        tokens = round(steps * numbers.batch_size * mean_length)
        seconds = steps * measured["distill_step"] + held_out
        for number in range(numbers.distill_rounds):
            condition = "if a gap closes" if number else ""
            plan.stages.append(Planned(round_title(number), steps, tokens, seconds, condition))
    if settings.compare:
        steps = work.teacher_steps()
        # About as long as a step of the teacher: the ternary function costs little.
        step = measured.get("teacher_step", measured["distill_step"])
        plan.stages.append(Planned(COMPARE, steps, round(steps * numbers.batch_size * mean_length), steps * step))
    models = 4 + settings.compare
    seconds = models * (len(examples.evaluation) * measured["evaluation_row"] + measured["load"])
    plan.stages.append(Planned(EVALUATE, 0, 0, seconds))
    if settings.speed:
        timed = 2 + settings.compare
        plan.stages.append(Planned(SPEED, 0, 0, timed * (_SPEED_SECONDS + measured["load"])))
    return plan


def fit(
    work: Work, settings: RecipeSettings, measured: dict[str, float], fine_tunes: bool, seconds: float
) -> tuple[Work, Plan]:
    """The largest effort whose plan, without what runs on a condition, ends within a budget.

    Raises:
        RecipeError: none does.
    """
    for factor in _FACTORS:
        numbers = dataclasses.replace(scaled(work.numbers, factor), **settings.overrides())
        candidate = dataclasses.replace(work, numbers=numbers)
        plan = make_plan(candidate, settings, measured, fine_tunes)
        plan.factor = factor
        if plan.surely <= BUDGET_SHARE * seconds:
            return candidate, plan
    raise RecipeError(
        f"the budget of {duration(seconds)} is too short: the least that can be done takes {duration(plan.surely)} here "
        f"({duration(plan.stages[-1].seconds)} of it evaluation)"
    )
