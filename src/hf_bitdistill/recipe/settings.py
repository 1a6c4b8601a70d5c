"""`RecipeSettings`: what a run is told, from Python, a YAML file or flags."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hub import PUSH_FORMATS
from .efforts import EFFORTS, Effort, paper


class RecipeError(ValueError):
    """The run cannot be done as asked; one line for the user."""


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass
class EffortArguments:
    """Single numbers of the effort, each instead of the table's."""

    teacher_examples: int | None = _option(None, "Examples that the teacher is fine-tuned on, at most.")
    teacher_epochs: float | None = _option(None, "How often it reads the data, at most.")
    teacher_learning_rate: float | None = _option(None, "Learning rate of the teacher's fine-tuning.")
    batch_size: int | None = _option(None, "Examples a step.")
    window_steps: int | None = _option(None, "Steps a window of the warm start; 0: no warm start.")
    extra_doublings: int | None = _option(None, "How often window_steps may be doubled, while that closes the gap.")
    window_tokens: int | None = _option(None, "Tokens a step of the warm start.")
    window_stride: int | None = _option(None, "Layers by which the window moves on.")
    window_learning_rate: float | None = _option(None, "Learning rate of the warm start.")
    window_start: str | None = _option(None, "Codes to begin with: absmean or least_squares.")
    loss_unit: str | None = _option(None, "Unit of the warm start's error: median or token.")
    warm_start_tokens: int | None = _option(None, "Tokens that the warm start reads.")
    weight_granularity: str | None = _option(None, "What shares a weight scale: tensor, row or group.")
    sub_norm: str | None = _option(
        None,
        "Where SubLNs are put: output, all or none. Exported to GGUF can be: output with Llama's layers and tied embeddings; none with "
        "Llama, Mistral, Qwen2 and Qwen3.",
    )
    calibrate_sub_norm: bool | None = _option(None, "SubLN start values from activations.")
    keep_massive_ratio: float | None = _option(
        None, "Keep projections in full precision whose largest output is so many times the median. 0: none."
    )
    corpus_tokens: int | None = _option(None, "Tokens of continual pre-training.")
    pretrain_batch_size: int | None = _option(None, "Blocks of plain text a step of continual pre-training.")
    pretrain_learning_rate: float | None = _option(None, "Learning rate of continual pre-training.")
    pretrain_logits_loss_weight: float | None = _option(None, "Weight of the teacher's distributions in it.")
    dead_zone_leak: float | None = _option(None, "Share with which weights of code 0 take part in it at first.")
    block_size: int | None = _option(None, "Tokens of a block of plain text.")
    distill_examples: int | None = _option(None, "Examples of the distillation, at most; 0: none.")
    distill_epochs: float | None = _option(None, "How often it reads the data, at most.")
    distill_rounds: int | None = _option(
        None, "Rounds of distillation at most, on other examples each, while they close the gap."
    )
    distill_learning_rates: list[float] | None = _option(  # noqa: RUF009
        None, "Learning rates of the distillation; of several, held-out training rows choose."
    )
    sweep_share: float | None = _option(None, "Share of the steps that each of several learning rates is tried for.")
    logits_loss_weight: float | None = _option(None, "Weight of the logits loss.")
    attention_loss_weight: float | None = _option(None, "Weight of the attention relation loss.")
    hidden_loss_weight: float | None = _option(None, "Weight of the hidden state loss.")
    temperature: float | None = _option(None, "Temperature of the logits loss.")
    keep_only_better: bool | None = _option(None, "Go back behind a distillation that makes the student worse.")
    held_out_rows: int | None = _option(None, "Training rows that are taken away for choices.")
    eval_rows: int | None = _option(None, "Rows of the evaluation split, at most; 0: all.")
    compare_learning_rate: float | None = _option(None, "Learning rate of BitNet-SFT (--compare).")
    table_bits: int | None = _option(None, "Bits of embedding and output head in the packed student: 16, 8 or 4.")


@dataclass
class RecipeSettings(EffortArguments):
    """A run of the recipe. `model`, `dataset` and `output_dir` are enough.

    Raises:
        RecipeError: a value is out of range, or two options contradict each other; names them.
    """

    model: str | None = _option(None, "Full-precision model: folder or Hub id.")
    dataset: str | None = _option(None, "File, folder or Hub id of the examples.")
    output_dir: str | None = _option(None, "Folder of the run. The same command goes on where it stopped.")
    task: str | None = _option(None, "A built-in task or a task file (task.yaml). Default: told by the columns.")
    dataset_config: str | None = _option(None, "Configuration of a dataset on the Hub.")
    dataset_revision: str | None = _option(None, "Revision of a dataset on the Hub.")
    train_split: str | None = _option(None, "Split to train on.")
    eval_split: str | None = _option(
        None, "Split to evaluate on. Default: validation, or a part of the training rows."
    )
    text_columns: list[str] | None = _option(None, "Columns with the text of a prompt.")  # noqa: RUF009
    label_column: str | None = _option(None, "Column with the label.")
    label_words: list[str] | None = _option(None, "The answer of each class, in order.")  # noqa: RUF009
    turns: str = _option("all", "Assistant turns of a conversation that are learned.", choices=["all", "last"])
    max_length: int | None = _option(None, "Tokens of an example. Default: the task's, or 512.")
    max_left_out: float = _option(0.1, "Share of the rows that may be unusable before the run stops.")
    corpus: str | None = _option(None, "Plain text for continual pre-training: file, folder or Hub id.")
    teacher: str | None = _option(
        None, "Fine-tuned full-precision model, or a PEFT adapter of one. Default: the model is fine-tuned here."
    )
    lora: bool = _option(False, "Fine-tune the teacher by LoRA instead of in full.")
    check_teacher: bool = _option(True, "Stop where the teacher is no better than chance.")
    effort: str = _option("standard", "How much is done.", choices=list(EFFORTS))
    budget: str | None = _option(None, "Time for the run, such as 45m or 2h30m: a measured probe picks what fits.")
    preset: str = _option("best", "The best known recipe, or the paper's.", choices=["best", "paper"])
    compare: bool = _option(False, "Also train BitNet-SFT, ternary without the recipe.")
    seed: int = _option(0, "Of everything random.")
    bf16: str = _option("auto", "Autocast to bfloat16; auto: where it is fast.", choices=["auto", "true", "false"])
    speed: bool = _option(True, "Measure tokens a second of teacher and student at the end.")
    checkpoint_minutes: float = _option(5.0, "How often a training keeps a checkpoint.")
    push_to: str | None = _option(None, "Repository on the Hub that the student is published in: name or owner/name.")
    push_format: str = _option("packed", "What is published.", choices=list(PUSH_FORMATS))
    push_private: bool = _option(False, "Make that repository a private one.")
    plan: bool = _option(False, "Print the stages with the time expected from a short measured probe, and stop.")

    def __post_init__(self) -> None:
        choices = {"turns": ("all", "last"), "effort": tuple(EFFORTS), "preset": ("best", "paper")}
        choices |= {"bf16": ("auto", "true", "false"), "push_format": PUSH_FORMATS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.table_bits not in (None, 16, 8, 4):
            raise RecipeError(f"table_bits must be 16, 8 or 4, not {self.table_bits!r}")
        if not 0 <= self.max_left_out <= 1:
            raise RecipeError(f"max_left_out is a share between 0 and 1, not {self.max_left_out}")
        if self.checkpoint_minutes <= 0:
            raise RecipeError(f"checkpoint_minutes must be positive, not {self.checkpoint_minutes}")
        if self.max_length is not None and self.max_length < 8:
            raise RecipeError(f"max_length must be at least 8, not {self.max_length}")
        if self.budget is not None:
            parse_budget(self.budget)
        may_be_zero = {
            "window_steps", "extra_doublings", "keep_massive_ratio", "pretrain_logits_loss_weight", "dead_zone_leak",
            "distill_examples", "logits_loss_weight", "attention_loss_weight", "hidden_loss_weight", "eval_rows",
        }  # fmt: skip
        for each in dataclasses.fields(Effort):
            value = getattr(self, each.name)
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if number is None or isinstance(number, (bool, str)):
                    continue
                if not number >= 0 or (number == 0 and each.name not in may_be_zero):
                    raise RecipeError(f"{each.name} must be positive, not {number}")
        if self.distill_learning_rates is not None and not self.distill_learning_rates:
            raise RecipeError("distill_learning_rates is empty: distill_examples=0 leaves the distillation out")
        if self.preset == "paper" and self.corpus is None:
            raise RecipeError("the preset paper pre-trains on plain text: give corpus (or use the preset best)")

    def require(self) -> None:
        """Refuse a run without model, data or output folder.

        Raises:
            RecipeError: names the option.
        """
        for name in ("model", "dataset", "output_dir"):
            if name == "model" and self.teacher is not None:
                continue
            if name == "dataset" and self.task is not None:
                continue
            if getattr(self, name) is None:
                raise RecipeError(f"--{name} is required")

    @property
    def base(self) -> str:
        """The full-precision model that everything begins with."""
        return self.model or self.teacher  # type: ignore[return-value]

    def numbers(self, classes: bool) -> Effort:
        """The effort's numbers with those that are given in their place.

        Args:
            classes: whether the answers are classes, for the paper's coefficients.
        """
        effort = EFFORTS[self.effort]
        if self.preset == "paper":
            effort = paper(effort, classes)
        return dataclasses.replace(effort, **self.overrides())

    def overrides(self) -> dict[str, Any]:
        """The numbers that are given."""
        given = {each.name: getattr(self, each.name) for each in dataclasses.fields(Effort)}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON and YAML: what differs from the defaults."""
        return {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if getattr(self, each.name) != each.default
        }

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> RecipeSettings:
        """Settings of a file, read as the command line reads it.

        Args:
            overrides: win over the file.
        """
        from ..cli.arguments import parse

        (settings,) = parse([cls], [str(path)], "settings", "")
        return dataclasses.replace(settings, **overrides)


_UNITS = {"h": 3600, "m": 60, "s": 1}


def parse_budget(text: str) -> float:
    """Seconds of `45m`, `2h`, `1h30m`, `90s`.

    Raises:
        RecipeError: it is none of these, or nothing.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds > 0:
        raise RecipeError(f"budget must be a time such as 45m, 2h or 1h30m, not {text!r}")
    return seconds
