"""`run_quickstart`: the whole pipeline, from a full-precision base model to a packed ternary one, in minutes."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, set_seed

from ..data import PromptEncoder
from ..evaluation import perplexity
from ..model_folder import replace_model
from ..packing import pack
from ..recipe.progress import quiet
from .base_model import TEACHER_FOLDER
from .corpus import QUICKSTART_PACKAGES, CorpusError, extract, split_texts
from .measure import describe_machine, measure_speed, projection_bytes, weights_bytes
from .report import summary, write_report
from .results import ModelResult, RunResult, ShownExample
from .scoring import chance_level, score_answers
from .settings import QuickstartError, QuickstartSettings
from .stages import StageLog, calibrate, fine_tune, load_base, new_student, pretrain
from .task import TASK, build_examples


class _Run:
    """State of one run: settings, clock, and what was measured so far."""

    def __init__(self, output: Path, settings: QuickstartSettings):
        self.output, self.settings = output, settings
        self.started = time.perf_counter()
        self.result = RunResult(settings, describe_machine(settings.torch_threads))
        self.logs: dict[str, StageLog] = self.result.logs
        self.tokenizer = AutoTokenizer.from_pretrained(settings.base_model)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announces a stage, with the time since the start of the run, and times it."""
        before = time.perf_counter()
        elapsed = int(before - self.started)
        print(f"\n[{elapsed // 60}:{elapsed % 60:02d}] {title}", flush=True)
        yield
        self.result.stage_seconds[title] = time.perf_counter() - before

    def prepare_text(self) -> None:
        settings = self.settings
        try:
            documents = extract(QUICKSTART_PACKAGES, int(settings.source_megabytes * 1e6), settings.torch_threads)
            sizes = {"train": settings.train_examples, "test": settings.test_examples}
            examples = build_examples(documents, sizes, settings.seed)
        except CorpusError as error:
            raise QuickstartError(f"Not enough text: {error}.") from None
        self.train, self.test = examples["train"], examples["test"]
        self.plain_text = split_texts(documents, "train")
        random.Random(settings.seed).shuffle(self.plain_text)
        self.held_out_text = split_texts(documents, "test")
        random.Random(settings.seed).shuffle(self.held_out_text)
        self.result.data = {
            "documents": len(documents),
            "characters of training text": sum(map(len, self.plain_text)),
            "task: training examples": len(self.train),
            "task: held-out examples": len(self.test),
        }
        self.result.chance = chance_level(self.train, self.test, self.tokenizer, settings.max_length)
        for name, value in self.result.data.items():
            print(f"  {name}: {value:,}", flush=True)

    def perplexity(self, name: str, model: PreTrainedModel) -> None:
        settings = self.settings
        measured = perplexity(
            model,
            self.tokenizer,
            self.held_out_text,
            settings.block_size,
            batch_size=16,
            max_blocks=settings.perplexity_blocks,
            progress=settings.progress,
        )
        self.result.perplexities[name] = measured["perplexity"]
        self.result.data["perplexity: held-out tokens"] = measured["tokens"]
        print(f"  held-out perplexity, {name}: {measured['perplexity']:.2f}", flush=True)

    def save(self, name: str, model: PreTrainedModel) -> Path:
        """Save as it would be published: what is not ternary in bfloat16."""
        folder = self.output / "models" / name
        model.to(torch.bfloat16)
        with replace_model(folder) as staging:
            model.save_pretrained(staging)
            self.tokenizer.save_pretrained(staging)
        return folder

    def evaluate(self, name: str, folder: Path) -> PreTrainedModel:
        """Load a saved model again and measure it: what is measured is what is on disk."""
        # Stored in bfloat16, computed in float32: the faster of the two on most CPUs.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        scores = score_answers(
            model, self.tokenizer, self.test, self.settings.max_length, progress=self.settings.progress
        )
        self.result.models[name] = ModelResult(
            folder=folder.relative_to(self.output).as_posix(),
            scores=scores,
            weights_bytes=weights_bytes(folder),
            projection_bytes=projection_bytes(folder),
        )
        print(f"  held-out token accuracy, {name}: {scores.accuracy:.1%}", flush=True)
        return model

    def show(self, model: PreTrainedModel, reference: PreTrainedModel) -> None:
        """Document a few held-out functions with the reloaded packed model."""
        rows = self.test.select(range(min(self.settings.shown_examples, len(self.test))))
        answers = [write_answers(each, self.tokenizer, rows, self.settings.max_length) for each in (model, reference)]
        for row, packed, full in zip(rows, *answers, strict=True):
            self.result.shown.append(ShownExample(row["signature"], row["summary"], packed, full))
            print(f"  {row['signature']}\n    {packed}", flush=True)


@torch.inference_mode()
def write_answers(model: PreTrainedModel, tokenizer: Any, rows: Dataset, max_length: int) -> list[str]:
    """What a model writes after the prompt of each row, greedily, up to its end-of-text token."""
    encoder = PromptEncoder(TASK, tokenizer, max_length)
    limits = GenerationConfig(
        do_sample=False,
        max_new_tokens=TASK.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = []
    for ids in encoder.encode_prompts(list(rows), [max_length - TASK.max_new_tokens] * len(rows)):
        prompt = torch.tensor([ids])
        output = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=limits)
        answers.append(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    return answers


def run_quickstart(
    output_dir: str | Path = "quickstart", settings: QuickstartSettings | None = None, **overrides: Any
) -> RunResult:
    """Fine-tune one base model in three ways and compare them on held-out text.

    Full precision; ternary without the recipe (BitNet-SFT); and BitNet Distillation: calibrated SubLN, continual
    pre-training, distillation from the fine-tuned full-precision model. Writes `report.md`, loss curves as PNG, and the
    saved models under `models/` into `output_dir`. Needs no network.

    Args:
        output_dir: is made if it is not there; files of an earlier run are overwritten.
        settings: default `QuickstartSettings()`.
        overrides: fields of [`QuickstartSettings`], e.g. `seed=1`.

    Returns:
        Everything that was measured; `result.report` is the path of the report.

    Raises:
        QuickstartError: the run cannot be done here; the message is one line for the user.
    """
    try:
        settings = replace(settings or QuickstartSettings(), **overrides)
    except TypeError as error:
        raise QuickstartError(f"Unknown setting: {error}.") from None
    output = Path(output_dir)
    try:
        (output / "models").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuickstartError(f"Cannot write to {output}: {error.strerror or error}.") from None
    if not (Path(settings.base_model) / "config.json").is_file():
        hint = "reinstall the package" if settings.base_model == TEACHER_FOLDER else "give a saved model's folder"
        raise QuickstartError(f"There is no base model in {settings.base_model}: {hint}.")
    with quiet(), _threads(settings.torch_threads):
        set_seed(settings.seed)
        return _run_stages(_Run(output, settings))


def _run_stages(run: _Run) -> RunResult:
    settings, tokenizer = run.settings, run.tokenizer
    with run.stage("Reading docstrings and building the task"):
        run.prepare_text()
        base = load_base(settings).eval()
        run.perplexity("base model, full precision", base)

    with run.stage("1/3 FP-SFT: fine-tuning in full precision"):
        full = load_base(settings)
        run.logs["FP-SFT"] = fine_tune(
            full, tokenizer, run.train, settings, settings.full_precision_learning_rate, "FP-SFT"
        )

    with run.stage("2/3 BitNet-SFT: ternary fine-tuning without the recipe"):
        plain = new_student(settings)
        run.perplexity("base model, ternary without training", plain)
        run.logs["BitNet-SFT"] = fine_tune(
            plain, tokenizer, run.train, settings, settings.bitnet_learning_rate, "BitNet-SFT"
        )

    with run.stage("3/3 BitDistill: continual pre-training of the ternary student with calibrated SubLN"):
        student = new_student(settings, "output")
        calibrate(student, tokenizer, run.plain_text, settings.block_size)
        run.perplexity("ternary with calibrated SubLN, without training", student)
        run.logs["continual pre-training"] = pretrain(student, base, tokenizer, run.plain_text, settings)
        run.perplexity("ternary after continual pre-training", student)

    with run.stage("3/3 BitDistill: distillation fine-tuning from FP-SFT"):
        run.logs["BitDistill"] = fine_tune(
            student, tokenizer, run.train, settings, settings.bitdistill_learning_rate, "BitDistill", full
        )

    with run.stage("Packing, saving, reloading, measuring"):
        folders = {
            "FP-SFT": run.save("fp-sft", full),
            "BitNet-SFT": run.save("bitnet-sft-packed", pack(plain)),
            "BitDistill": run.save("bitdistill-packed", pack(student)),
        }
        reloaded = {name: run.evaluate(name, folder) for name, folder in folders.items()}
        text = run.held_out_text[0]
        for name in ("FP-SFT", "BitDistill"):
            run.result.speeds[name] = measure_speed(reloaded[name], tokenizer, text, settings.timing_seconds)

    with run.stage("The reloaded packed model at work"):
        run.show(reloaded["BitDistill"], reloaded["FP-SFT"])
    run.result.seconds = time.perf_counter() - run.started
    write_report(run.result, run.output)
    print(f"\n{summary(run.result)}\n\nReport: {run.result.report}", flush=True)
    return run.result


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
