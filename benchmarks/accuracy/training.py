"""The work of each stage: student, continual pre-training, fine-tuning, evaluation. Each leaves `model/` in its folder."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from settings import ADDED, ADDED_TO_WARM_START, PASSED_ON, Arm, BenchmarkSettings, FineTuneSettings, PretrainSettings
from tasks import make_task
from texts import Texts
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from hf_bitdistill import (
    BitNetConfig,
    DistillationConfig,
    DistillationTrainer,
    PretrainingConfig,
    WarmStartConfig,
    apply_bitnet,
    calibrate_sub_norm,
    least_squares_warm_start,
)
from hf_bitdistill.data import batch_by_length, collate, take_tokens
from hf_bitdistill.evaluation import perplexity
from hf_bitdistill.machine.environment import default_device
from hf_bitdistill.recipe.progress import Progress
from hf_bitdistill.recipe.train import Machine, save, train, training_arguments
from hf_bitdistill.training import needs_teacher
from hf_bitdistill.training.pretraining import make_trainer
from hf_bitdistill.training.warm_start import warm_start


_CALIBRATION_BLOCKS = 16


class Work:
    """Everything that the stages of one benchmark share."""

    def __init__(
        self,
        settings: BenchmarkSettings,
        tokenizer: PreTrainedTokenizerBase,
        model: str,
        data_dir: Path | None,
        texts: Texts | None,
    ):
        self.settings, self.tokenizer, self.model, self.data_dir, self.texts = (
            settings,
            tokenizer,
            model,
            data_dir,
            texts,
        )
        self.device, self.machine = default_device(), Machine(settings.bf16)
        self.task = make_task(settings, tokenizer, data_dir) if settings.task else None

    def load(self, folder: str | Path, attn_implementation: str | None = None) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attn_implementation
        )

    # ---- Evaluation ----

    @property
    def metric(self) -> str:
        """The one number of the table: the task's, or nats a token."""
        return self.task.metric if self.task else "nll_per_token"

    def perplexities(self, model: PreTrainedModel) -> dict[str, Any]:
        """Of all held-out texts, by name."""
        if self.texts is None:
            return {}
        model = model.to(self.device)
        size = self.settings.text.block_size
        return {
            name: perplexity(model, self.tokenizer, blocks, size, batch_size=8, progress=False)
            for name, blocks in self.texts.held_out().items()
        }

    def scores(self, model: PreTrainedModel) -> dict[str, Any]:
        """Of the task."""
        return self.task.scores(model.to(self.device).eval())

    # ---- Stages ----

    def base(self, folder: Path) -> dict[str, Any]:
        model = self.load(self.model)
        result: dict[str, Any] = {"perplexity": self.perplexities(model)}
        if self.task:
            result["evaluation"] = self.scores(model)
        return result

    def start(
        self, arm: Arm, seed: int, steps_per_window: int | None, source: str | Path, folder: Path
    ) -> dict[str, Any]:
        """A student of `source` before any training of it as a whole."""
        set_seed(seed)
        student = apply_bitnet(self.load(source), BitNetConfig(**arm.student)).to(self.device)
        result: dict[str, Any] = {}
        config = None if arm.warm_start is None else arm.warm_start_config(seed, steps_per_window)
        sequences = self._start_sequences(arm, config, seed)
        if arm.calibrate and student_has_sub_norms(arm):
            rows = take_tokens(sequences, _CALIBRATION_BLOCKS * self.settings.text.block_size)
            calibrate_sub_norm(student, [{"input_ids": torch.tensor([row])} for row in rows])
            result["calibration_tokens"] = sum(map(len, rows))
        if arm.least_squares:
            least_squares_warm_start(student)
        if config is not None:
            batches = batch_by_length(sequences, arm.warm_start_batch_size, self.tokenizer)
            teacher = self.load(source).to(self.device)
            result["warm_start"] = warm_start(student, teacher, batches, config).to_dict()
        save(student, folder, self.tokenizer)
        return {**result, "perplexity": self.perplexities(student)}

    def _start_sequences(self, arm: Arm, config: WarmStartConfig | None, seed: int) -> list[list[int]]:
        """What calibration and warm start read: blocks of plain text or examples of the task, token ids of one each."""
        size = self.settings.text.block_size
        wanted = _CALIBRATION_BLOCKS * size
        tokens = (arm.warm_start or {}).get("tokens", 2**20)
        # No more than the warm start's steps can read: every batch costs a pass through both models.
        readable = 0 if config is None else config.steps_per_window * arm.warm_start_batch_size
        if arm.from_teacher:
            examples = self.task.train.shuffle(seed=seed)
            examples = examples.select(range(min(len(examples), max(readable, _CALIBRATION_BLOCKS))))
            return take_tokens(examples["input_ids"], max(wanted, tokens))
        # A student that keeps its source's values needs no text.
        if self.texts is None:
            return []
        if config is not None:
            wanted = max(wanted, min(tokens, readable * size))
        return take_tokens(self.texts.training(wanted, seed)["input_ids"], wanted)

    def pretrain(self, options: PretrainSettings, tokens: int, seed: int, source: Path, folder: Path) -> dict:
        """Continual pre-training of a student."""
        set_seed(seed)
        size = self.settings.text.block_size
        steps = max(1, round(tokens / (options.batch_size * size)))
        arguments = self._arguments(
            PretrainingConfig,
            folder,
            steps,
            options.batch_size,
            options.micro_batch_size,
            options.learning_rate,
            seed,
            logits_loss_weight=options.logits_loss_weight,
            quantization_warmup_steps=round(options.quantization_warmup_share * steps),
            **{name: getattr(options, name) for name in PASSED_ON},
        )
        teacher = self.load(self.model, options.attn_implementation) if needs_teacher(arguments) else None
        blocks = self.texts.training(tokens, seed)
        trainer = make_trainer(
            self.load(source, options.attn_implementation), arguments, blocks, self.tokenizer, teacher
        )
        result = self._train(trainer, folder)
        read = steps * options.batch_size * size
        return {**result, "tokens": read, "perplexity": self.perplexities(self.load(folder / "model"))}

    def fine_tune(
        self, options: FineTuneSettings, rate: float, seed: int, source: str | Path, teacher: Path | None, folder: Path
    ) -> dict[str, Any]:
        """Fine-tuning of a student, or of the full-precision model, on the task."""
        set_seed(seed)
        distill = options.method == "distill"
        weights = {} if distill else {"logits_loss_weight": 0.0, "attention_loss_weight": 0.0}
        arguments = self._arguments(
            DistillationConfig,
            folder,
            options.steps,
            options.batch_size,
            options.micro_batch_size,
            rate,
            seed,
            train_sampling_strategy="group_by_length",
            teacher_model_name_or_path=str(teacher) if distill else None,
            allow_full_precision_student=not distill,
            **{**weights, **options.options},
        )
        examples = self.task.train
        if options.other_examples:
            # Not with `seed` itself: a warm start from the task has read the first of that order.
            examples = examples.shuffle(seed=seed + 1)
        trainer = DistillationTrainer(
            model=self.load(source),
            args=arguments,
            train_dataset=examples,
            data_collator=collate(self.tokenizer),
            processing_class=self.tokenizer,
        )
        result = self._train(trainer, folder)
        scores = self.scores(self.load(folder / "model"))
        return {**result, "examples": options.steps * options.batch_size, "evaluation": scores}

    def evaluate(self, source: Path, folder: Path) -> dict[str, Any]:
        """The task's scores of a student that is not fine-tuned. Its model is the stage's before; none is kept here."""
        return {"evaluation": self.scores(self.load(source))}

    def _arguments(self, kind, folder, steps, batch, micro, rate, seed, **more):
        # As all rows were trained.
        options = {"train_sampling_strategy": "random", "data_seed": None, **more}
        return training_arguments(
            kind, folder, self.machine, steps=steps, batch=batch, micro=micro, rate=rate, seed=seed, **options
        )

    def _train(self, trainer: Trainer, folder: Path) -> dict[str, Any]:
        # What is measured is what was saved: the object that was trained goes on computing in the training's precision.
        progress = Progress()
        with progress.stage(folder.name):
            return train(trainer, folder, self.tokenizer, self.machine, progress)


def student_has_sub_norms(arm: Arm) -> bool:
    return arm.student.get("sub_norm", "output") != "none"


def describe(value: Any) -> dict[str, Any]:
    """A settings object as what identifies a stage. Options that came later count only if they are used: else a new one
    would make every finished stage run again."""
    before = {f.name: f.default for f in fields(value) if f.metadata == ADDED}
    if isinstance(value, WarmStartConfig):
        before = ADDED_TO_WARM_START
    return {name: item for name, item in asdict(value).items() if name not in before or item != before[name]}
