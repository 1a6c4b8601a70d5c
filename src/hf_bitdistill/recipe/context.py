"""What the stages of a run share, and how one runs or is found done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ..data.fingerprint import fingerprint_rows
from ..files.model_folder import STAGES
from ..files.output_folder import check_output_dir
from ..files.weight_files import size_of_weights
from ..machine import processes
from ..machine.agreement import Alike, check_alike, options, versions
from ..machine.environment import describe_environment
from ..pages.tables import format_score
from . import examples as example_kinds
from . import rules
from .given_models import read_given
from .measure import Measured
from .plan import EVALUATE, Plan, fit, make_plan, probe
from .progress import Progress, duration
from .result import Row
from .run_engine import engine
from .settings import RecipeError, RecipeSettings, parse_budget
from .stages import Work, held_out
from .store import CHECKPOINTS, Stage, StageStore, fingerprint_model
from .train import Machine, fast_bf16, others_load


IN_SHORT = "_in_short"
"""How the kind of a stage ends that is run for its measurement alone."""


@dataclass(frozen=True)
class Given:
    """A model that was not made here, in the place of a stage."""

    key: str
    model: str

    @classmethod
    def of(cls, name: str) -> Given:
        return cls(fingerprint_model(name), name)


class Context:
    """A run before and between its stages: what it was given, its plan, how a stage runs, what was decided."""

    def __init__(self, settings: RecipeSettings, progress: Progress):
        settings.require()
        self.settings, self.progress = settings, progress
        self.output = Path(cast(str, settings.output_dir))  # (see `RecipeSettings.require`)
        check_output_dir(
            self.output, {name: getattr(settings, name) for name in ("model", "teacher", "dataset", "corpus")}
        )
        self.models = read_given(settings)
        # Which coefficients are the paper's depends on the kind of examples, which rows are held out does not.
        numbers = settings.numbers(classes=True)
        self.examples = example_kinds.load(
            settings, self.models.tokenizer, self.models.context, numbers.held_out_rows, numbers.eval_rows
        )
        bf16 = fast_bf16() if settings.bf16 == "auto" else settings.bf16 == "true"
        self.work = Work(
            self.examples,
            self.models.tokenizer,
            settings.numbers(self.examples.kind == "classes"),
            settings.seed,
            Machine(bf16, 60 * settings.checkpoint_minutes),
            progress,
            self.models.config,
            settings.corpus,
            settings.lora,
            settings.dtype,
            settings.weight_bits,
        )
        self.store = StageStore(self.output / STAGES, lambda kind, folder, _: None)
        self.data: dict[str, Any] = {
            "train": fingerprint_rows(self.examples.train),
            "held_out": fingerprint_rows(self.examples.held_out),
        }
        self.base = Given.of(self.models.base)
        # Plain text is what the model is made for: it is its own teacher.
        self.fine_tunes = self.models.teacher is None and self.examples.kind != "text"
        if self.examples.kind == "text":
            settings.refuse_fine_tuning("of plain text the model as it came is the teacher")
        # With plain text the student learns the language before the task; and a teacher of another shape only teaches.
        self.student_of_base = settings.corpus is not None or bool(self.models.differs)
        self.seconds: dict[str, float] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.choices: list[str] = []
        self.kept: list[str] = []
        # Of each model of the table: where and when it was evaluated.
        self.evaluated_on: dict[str, dict[str, Any]] = {}
        self.plan = Plan()
        # Seconds for the stages, if there is a limit.
        self.budget: float | None = None
        self._check_batches()

    # ---- Several processes ----

    def _check_batches(self) -> None:
        """Refuse batches that cannot be shared evenly: how they are cut decides nothing, how large they are does.

        Raises:
            RecipeError: names the option, and numbers that do.
        """
        count = processes.world_size()
        for name in ("batch_size", *(["pretrain_batch_size"] if self.settings.corpus else [])):
            size = getattr(self.work.numbers, name)
            if size % count:
                below, above = size // count * count, -(-size // count) * count
                raise RecipeError(
                    f"{name} {size} is of all processes together and cannot be shared evenly among {count}: give --{name} "
                    f"{f'{below} or ' if below else ''}{above}, or start another number of processes"
                )

    def agree(self) -> None:
        """Make sure that all processes are about to do the same, and let them compute in the same dtype. Called by all, once.

        Raises:
            ProcessesError: they are not; in all processes.
        """
        inputs = {"model": self.base.key, **self.data}
        check_alike(
            [
                versions(),
                options(self.settings.to_dict()),
                Alike("model and data", inputs, "Give every machine the same copy of them."),
            ]
        )
        if self.settings.bf16 == "auto":
            bf16 = all(processes.gather(self.work.machine.bf16))
            self.work = dataclasses.replace(self.work, machine=dataclasses.replace(self.work.machine, bf16=bf16))

    @cached_property
    def evaluation(self) -> str:
        """What tells the rows of the evaluation split from others."""
        return fingerprint_rows(self.examples.evaluation)

    @cached_property
    def asked(self) -> dict[str, Any]:
        """How the evaluation split is asked, which no key of a model that was given says, and the rows that chance is counted of."""
        how = self.examples.how.to_dict()
        task = {name: value for name, value in how.get("task", {}).items() if name != "name"}
        return {
            "train": self.data["train"],
            "task": task,
            **{name: how.get(name) for name in ("kind", "turns", "max_length")},
        }

    # ---- Planning ----

    def make_plan(self) -> Plan:
        """Probe this machine, and let a budget decide the effort."""
        settings, work = self.settings, self.work
        needed = (
            "window_start",
            "window_stride",
            "loss_unit",
            "weight_granularity",
            "sub_norm",
            "batch_size",
            "pretrain_batch_size",
            "block_size",
            "window_tokens",
        )
        identity = {
            "model": self.base.key,
            **self.data,
            "machine": processes.from_first(lambda: describe_environment()["processor"], "looking at the processor"),
            "bf16": work.machine.bf16,
            "kinds": [self.fine_tunes, settings.corpus is not None, work.numbers.window_steps > 0, settings.lora],
            **{name: getattr(work.numbers, name) for name in needed},
        }
        if self.models.differs:
            identity["teacher"] = fingerprint_model(self.models.like_teacher)
        if processes.world_size() > 1:
            identity["processes"] = [processes.world_size(), engine()]
        self.progress.say("  measuring a few steps of this model on this machine")
        if (busy := others_load()) is not None:
            self.progress.say(
                f"  the machine is busy (load {busy:.1f}): threads that spin while they wait make each other slower; OMP_WAIT_POLICY=passive, "
                "or fewer threads (OMP_NUM_THREADS), helps"
            )
        stage = self.store.run(
            "probe",
            identity,
            lambda folder: {
                "measured": probe(
                    work,
                    self.models.base,
                    self.fine_tunes,
                    settings.corpus is not None,
                    folder / CHECKPOINTS,
                    self.models.like_teacher if self.models.differs else None,
                )
            },
        )
        measured = stage.result["measured"]
        if settings.budget is None:
            self.plan = make_plan(work, settings, measured, self.fine_tunes)
        else:
            # Of the run as a whole: the probe has had its part.
            self.budget = max(parse_budget(settings.budget) - stage.result["seconds"], 0.0)
            self.work, self.plan = fit(work, settings, measured, self.fine_tunes, self.budget)
            self.choices.append(
                f"of the effort {settings.effort} {self.plan.factor:g} times the amounts fit the budget of {settings.budget}"
            )
        self.progress.plan({each.title: each.seconds for each in self.plan.stages if not each.condition})
        return self.plan

    def has_time(self, title: str, share: float = 1.0) -> bool:
        """Whether a stage that was only perhaps to run fits a share of the budget, with all that must come after it."""
        if self.budget is None:
            return True
        expected = {each.title: each for each in self.plan.stages}
        done = sum(self.seconds.values())
        after = sum(each.seconds for each in self.plan.stages if each.title not in self.seconds and not each.condition)
        return done + after + expected[title].seconds <= share * self.budget

    # ---- Stages ----

    def stage(
        self,
        title: str,
        kind: str,
        names: tuple[str, ...],
        work: Callable[[Path], dict],
        parent: Any,
        by_first: bool = False,
        **identity: Any,
    ) -> Stage:
        """Run a stage or find it done.

        Args:
            names: the numbers that decide its result.
            by_first: the first process does all of it.
            identity: what else does.
        """
        settings = {
            **{name: getattr(self.work.numbers, name) for name in names},
            **identity,
            "seed": self.settings.seed,
            "bf16": self.work.machine.bf16,
        }
        with self.progress.stage(title, in_parts=title == EVALUATE):
            stage = self.store.run(kind, settings, work, parent, by_first)
        if title == EVALUATE:
            self.progress.took(title, stage.result["seconds"])
        self.seconds[title] = self.seconds.get(title, 0.0) + stage.result["seconds"]
        # (Of a short run the decision counts, which the report has.)
        if "curve" in stage.result and not kind.endswith(IN_SHORT):
            self.curves[title] = stage.result["curve"]
        if kind not in ("measure", "evaluate", "pack"):
            text = "was done before" if stage.was_done else f"took {duration(stage.result['seconds'])}"
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

    def evaluated(self, name: str, model: Stage | Given, final: bool = True) -> Row:
        stage = self.stage(
            EVALUATE,
            "evaluate",
            (),
            lambda folder: self.work.evaluate(model.model, folder),
            model,
            evaluation=self.evaluation,
            asked=self.asked,
        )
        self.evaluated_on[name] = stage.result.get("machine") or describe_environment()
        score = stage.result["score"]
        text = format_score(score["metric"], score["value"], score["stderr"])
        self.progress.done(f"{name}: {score['metric']} {text}")
        return Row(name, score, size_of_weights(model.model) or None, final=final)
