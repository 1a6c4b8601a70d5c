"""Accuracy of ternary students, several ways, on a task or as language models. What is run is in a YAML file.

    python benchmarks/accuracy/run.py benchmarks/accuracy/configs/NAME.yaml --model MODEL --data_dir DATA

Every stage (full-precision fine-tuning, start, continual pre-training, fine-tuning) keeps its model and its result in
`--output_dir`, under a hash of its settings and of the stages before it: arms share what they have in common, an
interrupted run goes on where it stopped, and a changed setting runs again what depends on it. The results are written to
`--results` after every arm and seed, beside the rows that other runs with the same settings have written there; `make results` makes
tables and plots of them.
"""

from __future__ import annotations

import argparse
import gc
from functools import partial
from pathlib import Path

import torch
from results import Results
from settings import Arm, BenchmarkSettings, FineTuneSettings, load_settings
from texts import Texts
from transformers import AutoModelForCausalLM

from hf_bitdistill.data.tokenizers import load_tokenizer
from hf_bitdistill.recipe.store import Stage, StageStore
from training import Work, describe


class Benchmark:
    """Runs the arms of a benchmark and collects their results."""

    def __init__(self, settings: BenchmarkSettings, options: argparse.Namespace):
        self.settings, self.options = settings, options
        self.store = StageStore(options.output_dir / settings.name)
        tokenizer = load_tokenizer(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        self.depth = model.config.get_text_config().num_hidden_layers
        data_dir = options.data_dir
        texts = Texts(settings.text, tokenizer, data_dir, options.output_dir / "text", model)
        self.work = Work(settings, tokenizer, options.model, data_dir, texts)
        self.large = options.large_model and Work(
            settings, load_tokenizer(options.large_model), options.large_model, data_dir, None
        )
        self.text_identity = describe(settings.text)
        # What decides a task's numbers besides the arm.
        self.task_identity = {
            name: getattr(settings, name) for name in ("task", "eval_examples", "max_length", "bf16")
        }
        self.results = Results(options.results / f"{settings.name}.json", settings, self.work.metric, options.note)
        # By arm, the metric of each learning rate. The best one of the first seed is the only one of the next.
        self.tried_rates: dict[str, dict[float, float]] = {}

    def __call__(self) -> None:
        options, settings = self.options, self.settings
        seeds = options.seeds if options.seeds is not None else settings.seeds
        base = self.store.run(
            "base", {"model": settings.model_name, **self.task_identity, "text": self.text_identity}, self.work.base
        )
        self.add("full precision", "full precision, as it came", None, 0, [base])
        # Small budgets first, so that a run which is ended early leaves complete comparisons.
        for budget in sorted(settings.budgets) or (None,):
            for seed in seeds:
                if settings.full_precision:
                    full = self.full_precision(self.work, seed)
                    self.add("fp_sft", "FP-SFT (the teacher)", None, seed, [full])
                for name, arm in settings.arms.items():
                    if self.is_wanted(name, arm):
                        self.add(name, arm.title, budget, seed, self.run_arm(name, arm, seed, budget))
                        gc.collect()

    def is_wanted(self, name: str, arm: Arm) -> bool:
        if self.options.only and name not in self.options.only:
            return False
        if arm.finetune and arm.finetune.teacher == "large" and not self.large:
            print(f"{name}: left out, it needs --large_model", flush=True)
            return False
        return True

    # ---- Stages ----

    def full_precision(self, work: Work, seed: int) -> Stage:
        """FP-SFT of a model with its best learning rate."""
        kind = "fp_sft" if work is self.work else "fp_sft_large"
        return self.best_rate(kind, work, self.settings.full_precision, seed, None, work.model, None)

    def teacher_of(self, arm: Arm, seed: int) -> Stage:
        """FP-SFT, or what the arm has in its place."""
        if arm.teacher_arm is None:
            return self.full_precision(self.work, seed)
        return self.run_arm(arm.teacher_arm, self.settings.arms[arm.teacher_arm], seed, None)[-1]

    def best_rate(
        self,
        name: str,
        work: Work,
        options: FineTuneSettings,
        seed: int,
        parent: Stage | None,
        source,
        teacher: Stage | None,
    ) -> Stage:
        tried = self.tried_rates.get(name)
        rates = (max(tried, key=tried.get),) if tried else options.learning_rates
        stages = []
        for rate in rates:
            identity = {
                **describe(options),
                "learning_rates": None,
                "learning_rate": rate,
                "seed": seed,
                "model": self.settings.model_name if work is self.work else Path(work.model).name,
                "teacher_stage": teacher.key if teacher else None,
                **self.task_identity,
            }
            train = partial(work.fine_tune, options, rate, seed, source, teacher and teacher.model)
            stages.append(self.store.run("finetune", identity, train, parent))
        metrics = [stage.result["evaluation"][work.metric] for stage in stages]
        self.tried_rates[name] = dict(zip(rates, metrics, strict=True))
        return stages[metrics.index(max(metrics))]

    def run_arm(self, name: str, arm: Arm, seed: int, budget: int | None) -> list[Stage]:
        source, source_stage = self.work.model, None
        if arm.from_teacher:
            source_stage = self.teacher_of(arm, seed)
            source = source_stage.model
        if arm.student is None:
            return [self.best_rate(name, self.work, arm.finetune, seed, source_stage, source, None)]
        steps = self.warm_start_steps(arm, budget)
        identity = {
            "model": self.settings.model_name,
            "text": self.text_identity,
            "seed": seed,
            **{key: describe(arm)[key] for key in ("student", "calibrate", "least_squares", "warm_start")},
            "steps_per_window": steps,
        }
        if arm.warm_start is not None:
            # Its defaults too: they are part of what is run.
            identity["warm_start"] = {**arm.warm_start, **describe(arm.warm_start_config(seed, steps))}
        if source_stage:
            identity["teacher_stage"] = source_stage.key
        start = self.store.run("start", identity, partial(self.work.start, arm, seed, steps, source))
        stages = [start]
        if arm.pretrain:
            spent = start.result.get("warm_start", {}).get("trained_tokens", 0)
            tokens = arm.pretrain.tokens if budget is None else budget - spent
            if tokens > 0:
                options = arm.pretrain
                identity = {**describe(options), "tokens": tokens, "seed": seed, "bf16": self.settings.bf16}
                train = partial(self.work.pretrain, options, tokens, seed, start.model)
                stages.append(self.store.run("pretrain", identity, train, start))
        last = stages[-1]
        if arm.finetune:
            teacher = None
            if arm.finetune.method == "distill":
                large = arm.finetune.teacher == "large"
                teacher = self.full_precision(self.large, seed) if large else self.teacher_of(arm, seed)
            stages.append(self.best_rate(name, self.work, arm.finetune, seed, last, last.model, teacher))
        elif self.work.task:
            stages.append(
                self.store.run("evaluate", self.task_identity, partial(self.work.evaluate, last.model), last)
            )
        return stages

    def warm_start_steps(self, arm: Arm, budget: int | None) -> int | None:
        """Steps a window, where the arm gives its warm start a share of the budget."""
        options = arm.warm_start or {}
        if "budget_share" not in options or budget is None:
            return None
        batch = arm.warm_start_batch_size * self.settings.text.block_size
        windows = len(arm.warm_start_config().windows(self.depth))
        return max(1, int(options["budget_share"] * budget / (windows * batch)))

    # ---- Results ----

    def add(self, arm: str, title: str, budget: int | None, seed: int, stages: list[Stage]) -> None:
        """Record an arm's run and write all results."""
        last = stages[-1].result
        row = {
            "arm": arm,
            "title": title,
            "budget": budget,
            "seed": seed,
            "evaluation": last.get("evaluation"),
            "tried_learning_rates": self.tried_rates.get(arm, {}),
            "perplexity": next((s.result["perplexity"] for s in reversed(stages) if "perplexity" in s.result), {}),
            "seconds": round(sum(stage.result["seconds"] for stage in stages), 1),
            "stages": [stage.result for stage in stages],
        }
        self.results.add(row)
        print(f"{title}, seed {seed}, budget {budget}: {row['evaluation'] or row['perplexity']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", required=True, help="folder or Hub id of the full-precision model")
    parser.add_argument("--large_model", help="a larger model of the same tokenizer, for arms with that teacher")
    parser.add_argument("--data_dir", type=Path, help="folder with one folder a task, and corpus/")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/accuracy"), help="models and stages")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/accuracy"), help="the JSON")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the configuration's")
    parser.add_argument("--only", nargs="+", help="only these arms")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--note", help="what a reader should know of the circumstances, for the result")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    Benchmark(load_settings(options.config), options)()


if __name__ == "__main__":
    main()
