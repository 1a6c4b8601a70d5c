"""`run_recipe`: a model and a dataset to a packed ternary student. The order of the stages, and what is decided between them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..files.model_folder import PACKED
from ..hub.cards import CardFacts
from ..machine import processes
from ..machine.environment import describe_environment
from . import rules
from .context import IN_SHORT, Context, Given
from .decoding_speed import tokens_per_second
from .measure import Measured, Score
from .packed_folder import put_packed
from .plan import (
    BUDGET_SHARE,
    COMPARE,
    DISTILL,
    EVALUATE,
    PRETRAIN,
    SPEED,
    START,
    TEACHER,
    Plan,
    further_rates,
    further_title,
    rate_title,
    round_title,
    start_title,
    window_schedule,
)
from .progress import Progress, duration, quiet
from .pushing import push_run
from .result import BASE_ROW, COMPARE_ROW, PACKED_ROW, PAGE, RecipeResult
from .run_engine import engine
from .run_facts import places_of, record_of, run_facts
from .settings import RecipeError, RecipeSettings
from .stages import held_out
from .store import Stage, alone, fingerprint_model, fingerprint_text, work_of_first, write_json


SETTINGS_FILE = "recipe.json"


@dataclass
class Distilled:
    """What the distillation gave.

    Attributes:
        student, measured: what is kept, on the held-out rows.
        tries: before it, after the chosen rate's short run, after each round.
        distilled: the last round's student, whether or not it is kept.
    """

    student: Stage
    measured: Measured
    tries: list[rules.Try]
    distilled: Stage | None = None


class _Run(Context):
    """The stages in their order."""

    def teacher(self) -> Stage | Given:
        settings, work, given = self.settings, self.work, self.models.teacher
        if given is not None and self.models.adapted is not None:
            return self.stage(
                TEACHER,
                "teacher",
                (),
                lambda folder: work.merge(given, folder),
                Given.of(self.models.adapted),
                by_first=True,
                adapter=fingerprint_model(given),
            )
        if given is not None:
            return Given.of(given)
        if not self.fine_tunes:
            return self.base
        identity: dict[str, Any] = {**self.data, "lora": settings.lora}

        def short_run(title: str, rate: float) -> Measured | None:
            steps = work.teacher_steps(work.numbers.sweep_share)
            train = partial(work.teacher, self.base.model, rate, steps, watch=False)
            return self.in_short(
                title, "teacher", ("batch_size",), train, self.base, rate=rate, steps=steps, **identity
            )

        rate, _ = self.sweep(TEACHER, "teacher_learning_rates", short_run)
        steps = work.teacher_steps()
        train = partial(work.teacher, self.base.model, rate, steps)
        return self.stage(TEACHER, "teacher", ("batch_size",), train, self.base, rate=rate, steps=steps, **identity)

    def in_short(
        self,
        title: str,
        kind: str,
        names: tuple[str, ...],
        training: Callable[[Path], dict[str, Any]],
        parent: Stage | Given,
        **identity: Any,
    ) -> Measured | None:
        """A training that is run for its measurement alone: its model is not kept. `None` where it did not stay finite."""

        def work(folder: Path) -> dict[str, Any]:
            try:
                result = {**training(folder), **self.work.measure(folder / "model", folder)}
            except FloatingPointError as error:
                result = {"not_finite": str(error)}
            processes.on_first(lambda: shutil.rmtree(folder / "model", ignore_errors=True), "removing a model")
            return result

        stage = self.stage(title, f"{kind}{IN_SHORT}", names, work, parent, **identity)
        return None if "not_finite" in stage.result else held_out(stage.result)

    def sweep(
        self, what: str, name: str, run: Callable[[str, float], Measured | None]
    ) -> tuple[float, dict[float, Measured | None]]:
        """The learning rate that a training runs at, and what the short runs that chose it measured, by rate; none of a single rate.

        Args:
            what: teacher or distillation.
            name: of the rates among the numbers.
            run: a short run, by its title and rate.

        Raises:
            RecipeError: no short run stayed finite.
        """
        rates = getattr(self.work.numbers, name)
        if len(rates) == 1:
            return rates[0], {}
        tried = {rate: run(rate_title(what, rate), rate) for rate in rates}
        if not any(tried.values()):
            raise RecipeError(f"{what}: losses are not finite at any of the learning rates {rates}: lower {name}")
        for number in range(further_rates(self.settings, self.work.numbers, name)):
            title, beyond = further_title(what, number), rules.rate_beyond(tried)
            # (Not of what a budget keeps for what no probe foresees: the dear stages come later.)
            if beyond is None or not self.has_time(title, BUDGET_SHARE):
                break
            self.progress.done(f"{what}: the best rate is at the edge, {beyond:g} is tried")
            tried[beyond] = run(title, beyond)
        rate = rules.best_rate(tried)
        losses = ", ".join(
            f"{each:g}: {f'{measured.loss:.3f}' if measured else 'not finite'}"
            for each, measured in sorted(tried.items())
        )
        beyond = rules.rate_beyond(tried)
        edge = "" if beyond is None else f"; the best is at the edge of the search, {beyond:g} was not tried"
        self.chose(f"{what} runs at the learning rate {rate:g}: held-out losses after the short runs {losses}{edge}")
        return rate, tried

    def check_teacher(self, measured: Measured) -> None:
        """Refuse a teacher that has nothing to teach.

        Raises:
            RecipeError: it is no better than chance.
        """
        chance = self.examples.chance
        numbers = f"{100 * measured.accuracy:.1f} ± {100 * measured.accuracy_error:.1f} %"
        text = f"the teacher has {numbers} of {len(measured.tokens)} held-out training rows right, the most frequent answer {100 * chance:.1f} %"
        self.choices.append(text)
        if self.settings.check_teacher and measured.accuracy <= chance + measured.accuracy_error:
            raise RecipeError(
                f"{text}: there is nothing to distil. Look at the data, fine-tune longer (teacher_examples, teacher_epochs, "
                "teacher_learning_rates), give a teacher, or set check_teacher to false"
            )

    def start(self, source: Stage | Given, teacher: Measured) -> tuple[Stage, Measured, list[rules.Try]]:
        """The student before any training of it as a whole: twice the steps while that closes the gap, from the start again (a warm start's
        schedule hardens its codes once)."""
        names: tuple[str, ...] = (
            "window_tokens", "window_stride", "window_learning_rate", "window_start", "loss_unit",
            "weight_granularity", "sub_norm", "calibrate_sub_norm", "keep_massive_ratio",
        )  # fmt: skip
        identity: dict[str, Any] = dict(self.data)
        if self.settings.corpus is not None:
            names = (*names, "block_size")
            identity = {"corpus": fingerprint_text(self.settings.corpus)}
        made: list[tuple[Stage, rules.Try]] = []
        for steps in window_schedule(self.work.numbers):
            title = start_title(steps)
            if made and not self.goes_on(
                "the warm start", title, f"{steps} steps a window", [each for _, each in made], teacher
            ):
                break
            stage = self.stage(
                title,
                "start",
                names,
                partial(self.work.start, source.model, steps),
                source,
                steps=steps,
                tokens=self.work.start_tokens(steps),
                **identity,
            )
            kept = stage.result["kept_in_full_precision"]
            if not made and kept:
                self.chose(f"kept in full precision, because they write massive activations: {', '.join(kept)}")
            made.append((stage, rules.Try(steps, self.measured(title, stage))))
        best, tried = min(made, key=lambda each: each[1].measured.loss)
        self.kept = best.result["kept_in_full_precision"]
        return best, tried.measured, [each for _, each in made]

    def pretrain(self, source: Stage) -> Stage:
        names = (
            "corpus_tokens",
            "pretrain_batch_size",
            "block_size",
            "pretrain_learning_rate",
            "pretrain_logits_loss_weight",
            "dead_zone_leak",
        )
        return self.stage(
            PRETRAIN,
            "pretrain",
            names,
            lambda folder: self.work.pretrain(source.model, self.base.model, folder),
            source,
            corpus=fingerprint_text(cast(str, self.settings.corpus)),
        )

    def distill(self, source: Stage, teacher: Stage | Given, on_teacher: Measured, before: Measured) -> Distilled:
        """Rounds of distillation while the gap to the teacher closes; the student before one that made it worse."""
        work, numbers = self.work, self.work.numbers
        done = Distilled(source, before, [rules.Try(0, before)])
        steps = work.distill_steps()
        if not steps:
            return done
        goes_on, why = rules.goes_on(done.tries, on_teacher)
        if numbers.keep_only_better and not goes_on:
            self.chose(f"no distillation: {why}")
            return done
        names = ("batch_size", "logits_loss_weight", "attention_loss_weight", "hidden_loss_weight", "temperature")

        identity: dict[str, Any] = {"teacher": teacher.key, **self.data}
        short = work.distill_steps(numbers.sweep_share)

        def short_run(title: str, rate: float) -> Measured | None:
            train = partial(work.distill, source.model, teacher.model, rate, short)
            return self.in_short(title, "distill", names, train, source, rate=rate, steps=short, **identity)

        rate, tried = self.sweep(DISTILL, "distill_learning_rates", short_run)
        if (chosen := tried.get(rate)) is not None:
            done.tries.append(rules.Try(short, chosen))
        student, rounds = source, done.tries[:1]
        for number in range(numbers.distill_rounds):
            title = round_title(number)
            if number and not self.goes_on("the distillation", title, f"round {number + 1}", rounds[-2:], on_teacher):
                break
            train = partial(work.distill, student.model, teacher.model, rate, steps, number=number)
            student = self.stage(
                title, "distill", names, train, student, rate=rate, steps=steps, round=number, **identity
            )
            after = self.measured(title, student)
            rounds.append(rules.Try((number + 1) * steps, after))
            done.tries.append(rounds[-1])
            done.distilled = student
            if not number and student.result.get("left_out"):
                self.chose(f"left out of the distillation: {'; '.join(student.result['left_out'])}")
            kept, why = rules.is_no_worse(after, done.measured)
            if numbers.keep_only_better:
                verb = "is kept" if kept else "is not kept, the result is the student before it"
                self.chose(f"{title} {verb}: {why}")
                if not kept:
                    break
            done.student, done.measured = student, after
        return done

    # ---- All of it ----

    def __call__(self) -> RecipeResult:
        settings, say = self.settings, self.progress.say
        say(self.examples.description)
        processes.on_first(self.remember, "keeping the settings")
        plan = self.make_plan()
        say(f"{plan.table()}\n")
        teacher = self.teacher()
        on_teacher = self.measured(TEACHER, teacher)
        self.check_teacher(on_teacher)
        self.progress.done(self.choices[-1])

        if self.models.differs:
            self.chose(
                f"the student is made of the model; the teacher has another shape ({self.models.differs}) and only teaches"
            )
        source = self.base if self.student_of_base else teacher
        student, before, tries = self.start(source, on_teacher)
        if settings.corpus:
            student = self.pretrain(student)
            before = self.measured(PRETRAIN, student)
        done = self.distill(student, teacher, on_teacher, before)
        final = done.student
        packed = self.packed(final)

        result = RecipeResult(
            self.output,
            settings.to_dict(),
            asdict(self.work.numbers),
            self.examples.description,
            self.examples.rows,
            gap={**rules.gap(done.measured, on_teacher), "n": len(done.measured.tokens)},
            tries=[
                {"what": what, "steps": each.effort, **rules.gap(each.measured, on_teacher)}
                for what, each in (*((START, each) for each in tries), *((DISTILL, each) for each in done.tries))
            ],
            outlook={START: rules.outlook(tries, on_teacher), DISTILL: rules.outlook(done.tries, on_teacher)},
            plan=self.plan.to_dict(),
            machine={
                **describe_environment(),
                **({"processes": processes.world_size(), "engine": engine()} if processes.world_size() > 1 else {}),
            },
        )
        if self.base.key != teacher.key:
            result.table.append(self.evaluated(BASE_ROW, self.base))
        result.table.append(self.evaluated("teacher", teacher))
        result.table.append(self.evaluated("student before distillation", student, final=False))
        if done.distilled is not None and final is not done.distilled:
            not_kept = self.evaluated("student after distillation (not kept)", done.distilled, final=False)
            result.table.append(not_kept)
        result.table.append(self.evaluated(PACKED_ROW, packed))
        places = {"teacher": teacher.model, PACKED_ROW: packed.model}
        if settings.compare:
            sft = self.stage(
                COMPARE,
                "bitnet_sft",
                ("teacher_examples", "teacher_epochs", "compare_learning_rate", "batch_size"),
                lambda folder: self.work.bitnet_sft(self.base.model, folder),
                self.base,
                **self.data,
            )
            packed_sft = self.packed(sft)
            result.table.append(self.evaluated(COMPARE_ROW, packed_sft))
            places[COMPARE_ROW] = packed_sft.model
        if settings.speed:
            self.time(result, places)
        self.publish(result, packed, teacher, final)
        say(
            f"\n{result.summary()}\n\n{duration(result.total_seconds)} in all, {duration(self.plan.surely)} to {duration(self.plan.seconds)} were planned."
        )
        say(f"packed student: {result.paths['packed']}\nreport: {result.paths['report']}")
        work_of_first(lambda: push_run(self.output, settings, say), "publishing")
        return result

    def time(self, result: RecipeResult, places: dict[str, str | Path]) -> None:
        """Tokens a second of the models that would be used.

        Args:
            places: row -> folder.
        """
        started, notes = time.perf_counter(), []
        for row in result.table:
            if row.name in places:
                place, is_packed = places[row.name], row.name != "teacher"
                row.tokens_per_second, note = work_of_first(
                    partial(tokens_per_second, place, packed=is_packed), "timing"
                )
                notes.append(note)
        result.notes += dict.fromkeys(filter(None, notes))
        self.seconds[SPEED] = round(time.perf_counter() - started, 1)

    def remember(self) -> None:
        """Keep the settings, and say what differs from the run before."""
        file, new = self.output / SETTINGS_FILE, self.settings.to_dict()
        if file.is_file():
            old = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(name for name in {*old, *new} - {"output_dir", "plan"} if old.get(name) != new.get(name))
            if changed:
                shown = ", ".join(
                    f"{name}: {old.get(name, 'default')} -> {new.get(name, 'default')}" for name in changed
                )
                self.progress.say(
                    f"{self.output} was run with other settings ({shown}): what depends on them runs again"
                )
        write_json(file, new)

    def packed(self, student: Stage) -> Stage:
        asked = {"dtype": self.settings.dtype, "weight_bits": self.settings.weight_bits}
        # (As before there were these options, a student that is packed without them is the one that is there.)
        stored = {name: value for name, value in asked.items() if value not in (None, 2)}
        return self.stage(
            EVALUATE,
            "pack",
            ("table_bits",),
            lambda folder: self.work.pack(student.model, folder),
            student,
            by_first=True,
            **stored,
        )

    def publish(self, result: RecipeResult, packed: Stage, teacher: Stage | Given, final: Stage) -> None:
        """What a user takes away: the packed student with its card, the result, the page."""
        place = self.output / PACKED
        result.paths = {"teacher": Path(teacher.model), "student": final.model, "packed": place}
        result.paths["report"] = self.output / PAGE
        result.choices, result.kept = self.choices, self.kept
        # Of a student that was evaluated in an earlier run: there and then. (Speeds are measured in every run.)
        shared: dict[str, Any] = {
            name: result.machine[name] for name in ("processes", "engine") if name in result.machine
        }
        result.machine = {**self.evaluated_on[PACKED_ROW], **shared}
        result.timed_on = describe_environment() if self.settings.speed else {}
        result.places = places_of(self.settings)
        result.seconds, result.curves = self.seconds, self.curves
        work_of_first(lambda: self._write(result, packed, final), "writing the results")

    def _write(self, result: RecipeResult, packed: Stage, final: Stage) -> None:
        record = record_of(result, self.examples, self.evaluation)
        record.write(final.model)  # (the trainable one, which it was packed from)
        base = Path(self.base.model) if Path(self.base.model).is_dir() else self.base.model

        def tell(folder: Path) -> CardFacts:
            return run_facts(folder, PACKED, result, base, record)

        put_packed(result.paths["packed"], packed.model, record, tell, self.progress.say)
        result.write()


def run_recipe(
    settings: RecipeSettings | None = None, *, progress: Progress | None = None, **overrides: Any
) -> RecipeResult:
    """Run the recipe, or go on with it: finished stages are found in `output_dir`, an interrupted one goes on from its last checkpoint,
    and a changed setting runs again only what depends on it.

    Under `torchrun` or `accelerate launch` every process calls it with the same settings; all train, and the first one decides, speaks and
    writes.

    Args:
        settings: default `RecipeSettings()`.
        progress: where its lines go. Default: standard output.
        overrides: fields of `RecipeSettings`.

    Returns:
        Scores, paths and times; the same is in `output_dir`: `result.json`, `report.html`, `packed/`.

    Raises:
        RecipeError: the run cannot be done as asked (a weak teacher, unusable rows, a short budget, ...); one line says what to do.
        ValueError, OSError: of the data or the models.
        ProcessesError: another process failed, or they do not have the same versions, settings, data or output folder; in all processes.
    """
    with quiet(), _prepared(settings, progress, overrides) as run:
        return run()


def plan_recipe(settings: RecipeSettings | None = None, *, progress: Progress | None = None, **overrides: Any) -> Plan:
    """What `run_recipe` would do, with the time expected here.

    Raises:
        As `run_recipe`, before any training.
    """
    with quiet(), _prepared(settings, progress, overrides) as run:
        run.progress.say(run.examples.description)
        plan = run.make_plan()
        run.progress.say(plan.table())
        return plan


@contextlib.contextmanager
def _prepared(settings: RecipeSettings | None, progress: Progress | None, overrides: dict[str, Any]) -> Iterator[_Run]:
    """A run that has read its model and data, in all processes the same, with its output folder to itself."""

    def read() -> _Run:
        return _Run(dataclasses.replace(settings or RecipeSettings(), **overrides), progress or Progress())

    run = processes.together(read, "reading the model and the data")
    run.agree()
    with alone(run.output):
        yield run


__all__ = ["Plan", "RecipeResult", "Score", "plan_recipe", "run_recipe"]
