"""`run_recipe`: a model and a dataset to a packed ternary student. The order of the stages, and what is decided between them."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cli.models import load_tokenizer
from ..cli.runs import check_output_dir
from ..distillation import check_same_tokenizer
from ..environment import describe_environment
from . import examples as example_kinds
from . import rules
from .card import write_card
from .measure import Measured, Score
from .plan import (
    COMPARE,
    DISTILL,
    EVALUATE,
    PRETRAIN,
    SPEED,
    START,
    TEACHER,
    Plan,
    fit,
    make_plan,
    probe,
    rate_title,
    round_title,
    start_title,
    window_schedule,
)
from .progress import Progress, duration, quiet
from .pushing import push_run
from .result import RecipeResult, Row, format_score
from .settings import RecipeError, RecipeSettings, parse_budget
from .speed import tokens_per_second
from .stages import Work, check_source, held_out, is_adapter, weight_bytes
from .store import Stage, StageStore, fingerprint_model, fingerprint_rows, write_json
from .train import Machine, fast_bf16, others_load


SETTINGS_FILE, STAGES, PACKED = "recipe.json", "stages", "packed"


@dataclass(frozen=True)
class Given:
    """A model that was not made here, in the place of a stage."""

    key: str
    model: str


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


class _Run:
    """A run: the stages in their order."""

    def __init__(self, settings: RecipeSettings, progress: Progress):
        settings.require()
        self.settings, self.progress = settings, progress
        self.output = Path(settings.output_dir)
        check_output_dir(
            self.output, {name: getattr(settings, name) for name in ("model", "teacher", "dataset", "corpus")}
        )
        source = settings.base
        self.tokenizer = self._tokenizer(source)
        if not is_adapter(source):
            config = check_source(source)
        if settings.teacher is not None and not is_adapter(settings.teacher):
            config = check_source(settings.teacher)
            check_same_tokenizer(self.tokenizer, load_tokenizer(settings.teacher))
        elif is_adapter(source):
            config = check_source(_adapted(source))
        # Which coefficients are the paper's depends on the kind of examples, which rows are held out does not.
        numbers = settings.numbers(classes=True)
        self.examples = example_kinds.load(settings, self.tokenizer, config, numbers.held_out_rows, numbers.eval_rows)
        bf16 = fast_bf16() if settings.bf16 == "auto" else settings.bf16 == "true"
        self.work = Work(
            self.examples,
            self.tokenizer,
            settings.numbers(self.examples.kind == "classes"),
            settings.seed,
            Machine(bf16, 60 * settings.checkpoint_minutes),
            progress,
            config,
            settings.corpus,
            settings.lora,
        )
        self.store = StageStore(self.output / STAGES, lambda kind, folder, _: None)
        self.data = {
            "train": fingerprint_rows(self.examples.train),
            "held_out": fingerprint_rows(self.examples.held_out),
        }
        self.base = Given(fingerprint_model(source), str(source))
        # Plain text is what the model is made for: it is its own teacher.
        self.fine_tunes = settings.teacher is None and self.examples.kind != "text"
        self.seconds: dict[str, float] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.choices: list[str] = []
        self.plan = Plan()

    def _tokenizer(self, source: str) -> Any:
        return load_tokenizer(_adapted(source) if is_adapter(source) else source)

    # ---- Planning ----

    def make_plan(self) -> Plan:
        """Probe this machine, and let a budget decide the effort."""
        settings, work = self.settings, self.work
        source = _adapted(settings.base) if is_adapter(settings.base) else settings.base
        needed = (
            "window_start",
            "window_stride",
            "loss_unit",
            "weight_granularity",
            "sub_norm",
            "batch_size",
            "block_size",
            "window_tokens",
        )
        identity = {
            "model": self.base.key,
            **self.data,
            "machine": describe_environment()["processor"],
            "bf16": work.machine.bf16,
            "kinds": [self.fine_tunes, settings.corpus is not None, work.numbers.window_steps > 0, settings.lora],
            **{name: getattr(work.numbers, name) for name in needed},
        }
        self.progress.say("  measuring a few steps of this model on this machine")
        if (busy := others_load()) is not None:
            self.progress.say(
                f"  the machine is busy (load {busy:.1f}): threads that spin while they wait make each other slower; OMP_WAIT_POLICY=passive, "
                "or fewer threads (OMP_NUM_THREADS), helps"
            )
        stage = self.store.run(
            "probe",
            identity,
            lambda folder: {"measured": probe(work, source, self.fine_tunes, settings.corpus is not None)},
        )
        measured = stage.result["measured"]
        if settings.budget is None:
            self.plan = make_plan(work, settings, measured, self.fine_tunes)
        else:
            # Of the run as a whole: the probe has had its part.
            budget = max(parse_budget(settings.budget) - stage.result["seconds"], 0.0)
            self.work, self.plan = fit(work, settings, measured, self.fine_tunes, budget)
            self.choices.append(
                f"of the effort {settings.effort} {self.plan.factor:g} times the amounts fit the budget of {settings.budget}"
            )
        self.progress.plan({each.title: each.seconds for each in self.plan.stages if not each.on_condition})
        return self.plan

    def has_time(self, title: str) -> bool:
        """Whether a stage that was only perhaps to run fits the budget, with all that must come after it."""
        if self.settings.budget is None:
            return True
        expected = {each.title: each for each in self.plan.stages}
        done = sum(self.seconds.values())
        after = sum(
            each.seconds for each in self.plan.stages if each.title not in self.seconds and not each.on_condition
        )
        return done + after + expected[title].seconds <= parse_budget(self.settings.budget)

    # ---- Stages ----

    def stage(
        self, title: str, kind: str, names: tuple[str, ...], work: Callable[[Path], dict], parent: Any, **identity: Any
    ) -> Stage:
        """Run a stage or find it done.

        Args:
            names: the numbers that decide its result.
            identity: what else does.
        """
        settings = {
            **{name: getattr(self.work.numbers, name) for name in names},
            **identity,
            "seed": self.settings.seed,
            "bf16": self.work.machine.bf16,
        }
        _, folder = self.store.place(kind, settings, parent)
        is_done = (folder / "result.json").is_file()
        with self.progress.stage(title):
            stage = self.store.run(kind, settings, work, parent)
        self.seconds[title] = self.seconds.get(title, 0.0) + stage.result["seconds"]
        if "curve" in stage.result:
            self.curves[title] = stage.result["curve"]
        if kind not in ("measure", "evaluate", "pack"):
            text = "was done before" if is_done else f"took {duration(stage.result['seconds'])}"
            curve = stage.result.get("curve")
            loss = f", loss {float(curve[0]['loss']):.3f} to {float(curve[-1]['loss']):.3f}" if curve else ""
            self.progress.done(f"{title}: {text}{loss}")
        return stage

    def measured(self, title: str, model: Stage | Given) -> Measured:
        """A model on the held-out training rows."""
        stage = self.stage(
            title,
            "measure",
            (),
            lambda folder: self.work.measure(model.model, folder),
            model,
            held_out=self.data["held_out"],
        )
        return held_out(stage.result)

    def teacher(self) -> Stage | Given:
        settings, work = self.settings, self.work
        given = settings.teacher or (settings.base if is_adapter(settings.base) else None)
        if given is not None and is_adapter(given):
            return self.stage(
                TEACHER,
                "teacher",
                (),
                lambda folder: work.merge(given, folder),
                self.base,
                adapter=fingerprint_model(given),
            )
        if given is not None:
            return Given(fingerprint_model(given), given)
        if not self.fine_tunes:
            return self.base
        names = ("teacher_examples", "teacher_epochs", "teacher_learning_rate", "batch_size")
        return self.stage(
            TEACHER,
            "teacher",
            names,
            lambda folder: work.teacher(self.base.model, folder),
            self.base,
            **self.data,
            lora=settings.lora,
        )

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
                "teacher_learning_rate), give a teacher, or set check_teacher to false"
            )

    def chose(self, text: str) -> None:
        """Keep a decision for the report, and say it."""
        self.choices.append(text)
        self.progress.done(text)

    def goes_on(self, what: str, title: str, to: str, tried: list[rules.Try], teacher: Measured) -> bool:
        """Whether a stage on a condition runs: the gap closes, and there is time."""
        goes_on, why = rules.goes_on(tried, teacher)
        if goes_on and not self.has_time(title):
            goes_on, why = False, f"{why}, but the budget has no time for it"
        self.chose(f"{what} {'goes' if goes_on else 'does not go'} on to {to}: {why}")
        return goes_on

    def start(self, source: Stage | Given, teacher: Measured) -> tuple[Stage, Measured, list[rules.Try]]:
        """The student before any training of it as a whole: twice the steps while that closes the gap, from the start again (a warm start's
        schedule hardens its codes once)."""
        names = (
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
                lambda folder, steps=steps: self.work.start(source.model, steps, folder),
                source,
                steps=steps,
                tokens=self.work.start_tokens(steps),
                **identity,
            )
            if not made and stage.result["kept_in_full_precision"]:
                kept = ", ".join(stage.result["kept_in_full_precision"])
                self.chose(f"kept in full precision, because they write massive activations: {kept}")
            made.append((stage, rules.Try(steps, self.measured(title, stage))))
        best, tried = min(made, key=lambda each: each[1].measured.loss)
        return best, tried.measured, [each for _, each in made]

    def pretrain(self, source: Stage) -> Stage:
        names = (
            "corpus_tokens",
            "batch_size",
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
            corpus=fingerprint_text(self.settings.corpus),
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

        def run(title: str, student: Stage, rate: float, steps: int, number: int = 0) -> tuple[Stage, Measured]:
            stage = self.stage(
                title,
                "distill",
                names,
                lambda folder: work.distill(student.model, teacher.model, rate, steps, folder, number),
                student,
                rate=rate,
                steps=steps,
                round=number,
                teacher=teacher.key,
                **self.data,
            )
            return stage, self.measured(title, stage)

        rate = numbers.distill_learning_rates[0]
        if len(numbers.distill_learning_rates) > 1:
            short = work.distill_steps(numbers.sweep_share)
            tried = {each: run(rate_title(each), source, each, short)[1] for each in numbers.distill_learning_rates}
            rate = rules.best_rate(tried)
            losses = ", ".join(f"{each:g}: {measured.loss:.3f}" for each, measured in tried.items())
            self.chose(
                f"the distillation runs at the learning rate {rate:g}: held-out losses after {short} steps {losses}"
            )
            done.tries.append(rules.Try(short, tried[rate]))
        student, rounds = source, done.tries[:1]
        for number in range(numbers.distill_rounds):
            title = round_title(number)
            if number and not self.goes_on("the distillation", title, f"round {number + 1}", rounds[-2:], on_teacher):
                break
            student, after = run(title, student, rate, steps, number)
            rounds.append(rules.Try((number + 1) * steps, after))
            done.tries.append(rounds[-1])
            done.distilled = student
            kept, why = rules.is_no_worse(after, done.measured)
            if numbers.keep_only_better:
                verb = "is kept" if kept else "is not kept, the result is the student before it"
                self.chose(f"{title} {verb}: {why}")
                if not kept:
                    break
            done.student, done.measured = student, after
        return done

    def evaluated(self, name: str, model: Stage | Given) -> Row:
        stage = self.stage(
            EVALUATE,
            "evaluate",
            (),
            lambda folder: self.work.evaluate(model.model, folder),
            model,
            evaluation=fingerprint_rows(self.examples.evaluation),
        )
        score = stage.result["score"]
        self.progress.done(f"{name}: {score['metric']} {format_score(score['value'], score['stderr'])}")
        return Row(name, score, weight_bytes(model.model))

    # ---- All of it ----

    def __call__(self) -> RecipeResult:
        settings, say = self.settings, self.progress.say
        say(self.examples.description)
        self.output.mkdir(parents=True, exist_ok=True)
        self.remember()
        plan = self.make_plan()
        say(f"{plan.table()}\n")
        teacher = self.teacher()
        on_teacher = self.measured(TEACHER, teacher)
        self.check_teacher(on_teacher)
        self.progress.done(self.choices[-1])

        # With plain text the student learns the language before the task, and is made of the model as it came.
        source = self.base if settings.corpus else teacher
        student, before, tries = self.start(source, on_teacher)
        if settings.corpus:
            student = self.pretrain(student)
            before = self.measured(PRETRAIN, student)
        done = self.distill(student, teacher, on_teacher, before)
        final = done.student
        packed = self.stage(EVALUATE, "pack", (), lambda folder: self.work.pack(final.model, folder), final)

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
            machine=describe_environment(),
        )
        if teacher is not self.base and not is_adapter(self.base.model) and self.base.key != teacher.key:
            result.table.append(self.evaluated("base model", self.base))
        result.table.append(self.evaluated("teacher", teacher))
        result.table.append(self.evaluated("student before distillation", student))
        if done.distilled is not None and final is not done.distilled:
            result.table.append(self.evaluated("student after distillation (not kept)", done.distilled))
        name = "ternary student, packed"
        result.table.append(self.evaluated(name, packed))
        if settings.compare:
            sft = self.stage(
                COMPARE,
                "bitnet_sft",
                ("teacher_examples", "teacher_epochs", "compare_learning_rate", "batch_size"),
                lambda folder: self.work.bitnet_sft(self.base.model, folder),
                self.base,
                **self.data,
            )
            result.table.append(self.evaluated("BitNet-SFT (no recipe)", sft))
        if settings.speed:
            started = time.perf_counter()
            for row in result.table:
                place = {"teacher": teacher.model, name: packed.model}.get(row.name)
                if place is not None:
                    row.tokens_per_second, note = tokens_per_second(place, packed=row.name == name)
                    result.notes += [note] if note else []
            self.seconds[SPEED] = round(time.perf_counter() - started, 1)
        self.publish(result, packed, teacher, final)
        say(
            f"\n{result.summary()}\n\n{duration(result.total_seconds)} in all, {duration(self.plan.surely)} to {duration(self.plan.seconds)} were planned."
        )
        say(f"packed student: {result.paths['packed']}\nreport: {result.paths['report']}")
        push_run(self.output, settings, say)
        return result

    def remember(self) -> None:
        """Keep the settings, and say what differs from the run before."""
        import json

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

    def publish(self, result: RecipeResult, packed: Stage, teacher: Stage | Given, final: Stage) -> None:
        """What a user takes away: the packed student with its card, the result, the page."""
        place = self.output / PACKED
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(packed.model, place)
        result.paths = {"teacher": Path(teacher.model), "student": final.model, "packed": place}
        result.choices, result.seconds, result.curves = self.choices, self.seconds, self.curves
        write_card(place, result, self.base.model, self.examples)
        result.write()


def _adapted(adapter: str) -> str:
    """The model that a PEFT adapter belongs to."""
    from peft import PeftConfig

    return PeftConfig.from_pretrained(adapter).base_model_name_or_path


def fingerprint_text(path: str) -> str:
    """Of a corpus: the names, sizes and times of its files, or its id."""
    place = Path(path).expanduser()
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    if not files:
        return path
    return "; ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def run_recipe(
    settings: RecipeSettings | None = None, *, progress: Progress | None = None, **overrides: Any
) -> RecipeResult:
    """Run the recipe, or go on with it: finished stages are found in `output_dir`, an interrupted one goes on from its last checkpoint,
    and a changed setting runs again only what depends on it.

    Args:
        settings: default `RecipeSettings()`.
        progress: where its lines go. Default: standard output.
        overrides: fields of `RecipeSettings`.

    Returns:
        Scores, paths and times; the same is in `output_dir`: `result.json`, `report.html`, `packed/`.

    Raises:
        RecipeError: the run cannot be done as asked (a weak teacher, unusable rows, a short budget, ...); one line says what to do.
        ValueError, OSError: of the data or the models.
    """
    settings = dataclasses.replace(settings or RecipeSettings(), **overrides)
    with quiet():
        return _Run(settings, progress or Progress())()


def plan_recipe(settings: RecipeSettings | None = None, *, progress: Progress | None = None, **overrides: Any) -> Plan:
    """What `run_recipe` would do, with the time expected here.

    Raises:
        As `run_recipe`, before any training.
    """
    settings = dataclasses.replace(settings or RecipeSettings(), **overrides)
    with quiet():
        run = _Run(settings, progress or Progress())
        run.progress.say(run.examples.description)
        plan = run.make_plan()
        run.progress.say(plan.table())
        return plan


__all__ = ["Plan", "RecipeResult", "Score", "plan_recipe", "run_recipe"]
