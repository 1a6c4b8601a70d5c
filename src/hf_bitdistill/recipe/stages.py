"""The work of each stage. Each leaves `model/` in its folder and returns what it measured; none knows what comes before or after.

Every process does it, but for `merge` and `pack`, which are the first one's. `batch_size` is that of all processes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..config import FILE_WEIGHT_BITS, BitNetConfig
from ..data import batch_by_length, batch_for_tokens, collate, load_corpus, pack_corpus, take_tokens
from ..evaluation import share_rows
from ..machine import processes
from ..machine.environment import to
from ..machine.whole_models import whole_models
from ..modeling.locate import find_model
from ..modeling.pack import pack
from ..modeling.surgery import apply_bitnet
from ..training import DistillationConfig, DistillationTrainer, PretrainingConfig
from ..training.calibration import calibrate_sub_norm
from ..training.losses.attention_states import attention_layers
from ..training.massive_activations import find_massive_projections
from ..training.pretraining import make_trainer
from ..training.warm_start import WarmStartConfig, warm_start
from ..verify import save_packed
from .efforts import Effort, bitnet_config
from .examples import Examples
from .measure import Measured
from .order import in_order
from .progress import Progress
from .run_engine import shards
from .settings import RecipeError
from .store import CHECKPOINTS, work_of_first
from .train import Machine, micro_batch, save, steps_for, train, training_arguments, write_model


WARM_START_FILE = "warm_start.pt"

_CALIBRATION_BATCHES = 8
# How often the teacher's held-out loss is looked at, at most and for at most what share of the training's time (an example that is trained on
# takes as long as three that are read), and how often in a row it may rise.
_LOOKS, _LOOKS_SHARE, _PATIENCE = 8, 0.15, 2
_LORA_RATE_FACTOR = 4.0
_SHUFFLE_BUFFER = 10_000


@dataclass
class Work:
    """What all stages share.

    Args:
        config: of the model, for its size.
        corpus: plain text, if there is any.
        packed_dtype, weight_bits: of the packed student, see [`pack`]; default: in the dtype of the model, 1.6 bits.
    """

    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    numbers: Effort
    seed: int
    machine: Machine
    progress: Progress
    config: Any
    corpus: str | None = None
    lora: bool = False
    packed_dtype: str | None = None
    weight_bits: float = FILE_WEIGHT_BITS

    def load(self, name_or_path: str | Path) -> PreTrainedModel:
        """In float32, on the device."""
        return to(self._read(name_or_path), self.machine.device)

    def load_to_train(self, name_or_path: str | Path) -> PreTrainedModel:
        """In float32, on the device unless a `Trainer` puts shards there."""
        return self._read(name_or_path) if shards() else self.load(name_or_path)

    def _read(self, name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        with whole_models():
            return AutoModelForCausalLM.from_pretrained(find_model(str(name_or_path)), dtype=dtype)

    # ---- Sizes ----

    @property
    def length(self) -> int:
        """Tokens of the longest training example."""
        return max(map(len, self.examples.train["input_ids"]))

    @property
    def dtype(self) -> torch.dtype:
        """In which a model is stored: as the full-precision one came, where that is a float of 16 bits."""
        dtype = self.config.get_text_config().dtype or self.config.dtype
        return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32

    def micro(self, model: PreTrainedModel, length: int, batch: int | None = None) -> int:
        """Examples of a length that a process trains on at once.

        Args:
            model: that is trained; it is on its device, and so is a teacher.
            batch: a step; default: `batch_size`.
        """
        each = (batch or self.numbers.batch_size) // processes.world_size()
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return micro_batch(
            each, length, self.config, self.machine, trained // (processes.world_size() if shards() else 1)
        )

    def teacher_steps(self, share: float = 1.0) -> int:
        numbers = self.numbers
        rows = len(self.examples.train)
        steps = steps_for(numbers.teacher_examples, numbers.teacher_epochs, rows, numbers.batch_size)
        return max(1, round(share * steps))

    def teacher_looks(self) -> int:
        """How often its loss on the held-out rows is looked at."""
        read = 3 * self.teacher_steps() * self.numbers.batch_size
        looks = int(_LOOKS_SHARE * read / len(self.examples.held_out))
        return min(max(looks, 1), _LOOKS, self.teacher_steps())

    def distill_steps(self, share: float = 1.0) -> int:
        numbers = self.numbers
        if not numbers.distill_examples:
            return 0
        rows = len(self.examples.train)
        steps = steps_for(numbers.distill_examples, numbers.distill_epochs, rows, numbers.batch_size)
        return max(1, round(share * steps))

    def pretrain_steps(self) -> int:
        return max(1, round(self.numbers.corpus_tokens / (self.numbers.pretrain_batch_size * self.numbers.block_size)))

    # ---- Teacher ----

    def teacher(self, source: str | Path, rate: float, steps: int, folder: Path, watch: bool = True) -> dict[str, Any]:
        """Fine-tune in full precision, in full or by LoRA.

        Args:
            rate: of all weights; adapters have a higher one.
            watch: look at the loss on the held-out rows, stop when it rises, and take the best.
        """
        set_seed(self.seed)
        model, numbers = self.load_to_train(source), self.numbers
        if self.lora:
            from peft import LoraConfig, get_peft_model

            adapters = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
            model = cast(PreTrainedModel, get_peft_model(model, adapters))  # (which hands on all that it has)
            rate *= _LORA_RATE_FACTOR
        every = -(-steps // self.teacher_looks())
        watching = {
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_strategy": "steps",
            "save_steps": every,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "prediction_loss_only": True,
            # How often in a row it rose counts on after an interruption.
            "restore_callback_states_from_checkpoint": True,
        }
        # On labels alone: of this trainer the logits exist where there is a label, which are few of a task's positions.
        arguments = training_arguments(
            DistillationConfig,
            folder,
            self.machine,
            steps=steps,
            batch=numbers.batch_size,
            micro=self.micro(model, self.length),
            rate=rate,
            seed=self.seed,
            allow_full_precision_student=True,
            logits_loss_weight=0.0,
            attention_loss_weight=0.0,
            **(watching if watch else {}),
        )
        trainer = DistillationTrainer(
            model,
            None,
            arguments,
            data_collator=collate(self.tokenizer),
            train_dataset=in_order(self.examples.train, steps, numbers.batch_size, self.seed),
            eval_dataset=self.examples.held_out if watch else None,
            callbacks=[EarlyStoppingCallback(_PATIENCE)] if watch else [],
        )
        result = train(trainer, folder, self.tokenizer, self.machine, self.progress)
        looked = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
        best = trainer.state.best_metric
        del trainer, model
        if self.lora or self.dtype != torch.float32:
            work_of_first(lambda: self._publish_teacher(folder), "saving the teacher")
        return {**result, "held_out_losses": looked, "best_loss": best}

    def _publish_teacher(self, folder: Path) -> None:
        """Save it as it would be published: what is measured, and what the student learns from, is what is on disk."""
        place = folder / "model"
        model = _merged(place) if self.lora else self._read(place, self.dtype)
        for file in place.glob("adapter_*"):
            file.unlink()
        write_model(to(model, self.dtype), folder, self.tokenizer)

    def merge(self, adapter: str | Path, folder: Path) -> dict[str, Any]:
        """Merge a PEFT adapter into its base model."""
        write_model(_merged(adapter), folder, self.tokenizer)
        return {}

    # ---- Start ----

    def _sequences(self, wanted: int) -> list[Sequence[int]]:
        """What calibration and warm start read."""
        if self.corpus is None:
            order = self.examples.train.shuffle(seed=self.seed)
            return take_tokens((row["input_ids"] for row in order), wanted)
        return take_tokens((row["input_ids"] for row in self.blocks()), wanted)

    def blocks(self) -> Any:
        """Blocks of plain text, streamed."""
        texts = load_corpus(cast(str, self.corpus), streaming=True).shuffle(
            seed=self.seed, buffer_size=_SHUFFLE_BUFFER
        )
        return pack_corpus(texts, self.tokenizer, self.numbers.block_size)

    def window_config(self, steps: int) -> WarmStartConfig:
        numbers = self.numbers
        return WarmStartConfig(
            steps_per_window=steps,
            window_stride=numbers.window_stride,
            learning_rate=numbers.window_learning_rate,
            start=numbers.window_start,
            loss_unit=numbers.loss_unit,
            bf16=self.machine.bf16,
            seed=self.seed,
        )

    def start_tokens(self, steps: int) -> int:
        """What a warm start of so many steps a window reads."""
        numbers = self.numbers
        return round(numbers.warm_start_tokens * max(1.0, steps / max(numbers.window_steps, 1)))

    def start(self, source: str | Path, steps: int, folder: Path, max_batches: int | None = None) -> dict[str, Any]:
        """A ternary student of a full-precision model: what no ternary projection can replace is found, SubLNs are calibrated, and the
        blocks learn from the model's own.

        Args:
            steps: a window; 0: no warm start.
            max_batches: of the text that is read, for a probe.
        """
        numbers, tokenizer = self.numbers, self.tokenizer
        set_seed(self.seed)
        model = self.load(source)
        sequences = self._sequences(self.start_tokens(steps))
        if not sequences:
            raise RecipeError(f"{self.corpus} has fewer tokens than one block of {numbers.block_size}")
        size = batch_for_tokens(sequences, numbers.window_tokens)
        # No more than the steps can read: every batch costs a pass through both models.
        readable = size * (min(max(steps, _CALIBRATION_BATCHES), max_batches or steps) or _CALIBRATION_BATCHES)
        batches = batch_by_length(sequences[:readable], size, tokenizer)
        sample = batches[:_CALIBRATION_BATCHES]
        config = bitnet_config(numbers)
        with self.machine.autocast():
            ratio = numbers.keep_massive_ratio
            kept = find_massive_projections(model, sample, ratio, config) if ratio else []
            config.modules_to_not_convert = [*(config.modules_to_not_convert or []), *kept] or None
            student = apply_bitnet(self.load(source), config)
            if numbers.calibrate_sub_norm and numbers.sub_norm != "none":
                calibrate_sub_norm(student, sample)
        result: dict[str, Any] = {"kept_in_full_precision": kept, "batch_size": size, "batches": len(batches)}
        if steps:
            report = warm_start(
                student,
                model,
                batches,
                self.window_config(steps),
                on_step=self.progress.show,
                say=self.progress.done,
                checkpoint=folder / CHECKPOINTS / WARM_START_FILE,
            )
            result["warm_start"] = report.to_dict()
        save(student, folder, tokenizer)
        return result

    # ---- Training of the whole student ----

    def pretrain(self, source: str | Path, teacher: str | Path, folder: Path) -> dict[str, Any]:
        """Continual pre-training on plain text, with the model's own distributions as a second target."""
        set_seed(self.seed)
        numbers = self.numbers
        student = self.load_to_train(source)
        model = self.load_to_train(teacher) if numbers.pretrain_logits_loss_weight else None
        arguments = training_arguments(
            PretrainingConfig,
            folder,
            self.machine,
            steps=self.pretrain_steps(),
            batch=numbers.pretrain_batch_size,
            micro=self.micro(student, numbers.block_size, numbers.pretrain_batch_size),
            rate=numbers.pretrain_learning_rate,
            seed=self.seed,
            logits_loss_weight=numbers.pretrain_logits_loss_weight,
            dead_zone_leak=numbers.dead_zone_leak,
        )
        trainer = make_trainer(student, arguments, self.blocks(), self.tokenizer, model)
        return train(trainer, folder, self.tokenizer, self.machine, self.progress)

    def distill(
        self, source: str | Path, teacher: str | Path, rate: float, steps: int, folder: Path, number: int = 0
    ) -> dict[str, Any]:
        """Distillation from the teacher: labels, distributions, attention relations, hidden states.

        Args:
            number: of the round; each begins elsewhere in the data.
        """
        numbers = self.numbers
        student, model = self.load_to_train(source), self.load_to_train(teacher)
        losses = {
            "temperature": numbers.temperature,
            "logits_loss_weight": numbers.logits_loss_weight,
            "attention_loss_weight": numbers.attention_loss_weight,
            "hidden_loss_weight": numbers.hidden_loss_weight,
        }
        left_out = {}
        if len({each.config.get_text_config().hidden_size for each in (student, model)}) > 1:
            left_out["hidden_loss_weight"] = "hidden states: teacher and student are not equally wide"
        if not all(attention_layers(each) for each in (student, model)):
            left_out["attention_loss_weight"] = "attention relations: this architecture does not show its Q, K, V"
        left_out = {name: why for name, why in left_out.items() if losses[name]}
        losses.update(dict.fromkeys(left_out, 0.0))
        result = self._train_student(student, model, rate, steps, folder, number * steps, losses)
        return {**result, "left_out": list(left_out.values())}

    def bitnet_sft(self, source: str | Path, folder: Path) -> dict[str, Any]:
        """What the recipe is compared with: the model made ternary and fine-tuned on the labels alone."""
        student = apply_bitnet(self.load_to_train(source), BitNetConfig(sub_norm="none"))
        rate, losses = self.numbers.compare_learning_rate, {"logits_loss_weight": 0.0, "attention_loss_weight": 0.0}
        return self._train_student(student, None, rate, self.teacher_steps(), folder, 0, losses)

    def _train_student(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        rate: float,
        steps: int,
        folder: Path,
        skip: int,
        losses: dict[str, float],
    ) -> dict[str, Any]:
        """On the examples behind the first `skip` steps' ones."""
        set_seed(self.seed)
        batch = self.numbers.batch_size
        arguments = training_arguments(
            DistillationConfig,
            folder,
            self.machine,
            steps=steps,
            batch=batch,
            micro=self.micro(student, self.length),
            rate=rate,
            seed=self.seed,
            **losses,
        )
        trainer = DistillationTrainer(
            student,
            teacher,
            arguments,
            data_collator=collate(self.tokenizer),
            train_dataset=in_order(self.examples.train, steps, batch, self.seed, skip),
            processing_class=self.tokenizer,
            teacher_processing_class=self.tokenizer,
        )
        return train(trainer, folder, self.tokenizer, self.machine, self.progress)

    # ---- After training ----

    def pack(self, source: str | Path, folder: Path) -> dict[str, Any]:
        """By default in the dtype of the model that the run began with: what lies between is trained, and saved, in float32."""
        packed = pack(
            self._read(source),
            inplace=True,
            dtype=self.packed_dtype or self.config.dtype,
            table_bits=self.numbers.table_bits,
            weight_bits=self.weight_bits,
        )
        save_packed(packed, folder / "model", self.tokenizer)
        return {}

    def measure(self, source: str | Path, folder: Path) -> dict[str, Any]:
        """On the held-out training rows; no model is kept."""
        model = self.load(source).eval()
        with share_rows(self._tell_rows(len(self.examples.held_out))):
            return {"held_out": self.examples.measure(model).to_dict()}

    def evaluate(self, source: str | Path, folder: Path) -> dict[str, Any]:
        """On the evaluation split; no model is kept."""
        model = self.load(source).eval()
        with share_rows(self._tell_rows(len(self.examples.evaluation))):
            return {"score": self.examples.score(model).to_dict()}

    def _tell_rows(self, total: int) -> Callable[[int], None]:
        """Says how many rows of an evaluation that begins now are done."""
        self.progress.show_rows(0, total)
        return lambda done: self.progress.show_rows(done, total)


def _merged(adapter: str | Path) -> PreTrainedModel:
    """The model of a PEFT adapter, with it merged in, in float32."""
    from peft import AutoPeftModelForCausalLM

    with whole_models():
        return AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype=torch.float32).merge_and_unload()


def held_out(result: dict[str, Any]) -> Measured:
    return Measured.from_dict(result["held_out"])
