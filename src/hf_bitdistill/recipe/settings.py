"""`RecipeSettings`: what a run is told, from Python, a YAML file or flags."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..config import FILE_WEIGHT_BITS, FLOAT_DTYPES, WEIGHT_BITS
from ..hub import PUSH_FORMATS
from .efforts import EFFORTS, Effort, paper


class RecipeError(ValueError):
    """The run cannot be done as asked; one line for the user."""


# What is read of a corpus alone.
_OF_A_CORPUS = (
    "corpus_tokens", "block_size", "pretrain_batch_size", "pretrain_learning_rate", "pretrain_logits_loss_weight", "dead_zone_leak",
)  # fmt: skip


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


def _effort_options() -> list[tuple[str, Any, Any]]:
    """Every number of an effort as an option, which is `None` where the table's is taken."""
    kinds = get_type_hints(Effort)
    kinds = {name: list[float] if get_origin(kind) is tuple else kind for name, kind in kinds.items()}
    return [
        (each.name, kinds[each.name] | None, _option(None, each.metadata["help"]))
        for each in dataclasses.fields(Effort)
    ]


EffortArguments = dataclasses.make_dataclass("EffortArguments", _effort_options())
EffortArguments.__doc__ = "Single numbers of the effort, each instead of the table's."


@dataclass
class RecipeSettings(EffortArguments):  # type: ignore[misc, valid-type]  # made of the fields of `Effort`
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
    max_length: int | None = _option(
        None, "Tokens of an example. Default: the task's, or 1024; of plain text, blocks of 256."
    )
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
    dtype: str | None = _option(
        None,
        "Of norms, biases and what stays in full precision in the packed student. Default: the model's own.",
        choices=list(FLOAT_DTYPES),
    )
    weight_bits: float = _option(
        FILE_WEIGHT_BITS, "Bits of a ternary weight in the files of the packed student: 1.6, or 2."
    )
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
        if self.dtype not in (None, *FLOAT_DTYPES):
            raise RecipeError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, not {self.dtype!r}")
        if self.weight_bits not in WEIGHT_BITS:
            raise RecipeError(
                f"weight_bits must be one of {', '.join(map(str, WEIGHT_BITS))}, not {self.weight_bits!r}"
            )
        if not 0 <= self.max_left_out <= 1:
            raise RecipeError(f"max_left_out is a share between 0 and 1, not {self.max_left_out}")
        if self.checkpoint_minutes <= 0:
            raise RecipeError(f"checkpoint_minutes must be positive, not {self.checkpoint_minutes}")
        if self.max_length is not None and self.max_length < 8:
            raise RecipeError(f"max_length must be at least 8, not {self.max_length}")
        if self.budget is not None:
            parse_budget(self.budget)
        may_be_zero = {
            "window_steps", "extra_doublings", "sweep_extensions", "keep_massive_ratio", "pretrain_logits_loss_weight", "dead_zone_leak",
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
        if self.teacher_learning_rates is not None and not self.teacher_learning_rates:
            raise RecipeError("teacher_learning_rates is empty: give a teacher to leave its fine-tuning out")
        if self.preset == "paper" and self.corpus is None:
            raise RecipeError("the preset paper pre-trains on plain text: give corpus (or use the preset best)")
        if self.teacher is not None:
            self.refuse_fine_tuning("a teacher is given")
        if self.corpus is None and (said := [name for name in _OF_A_CORPUS if getattr(self, name) is not None]):
            raise RecipeError(
                f"{', '.join(said)}: of which plain text? Give it (--corpus), or leave {_them(said)} out"
            )

    def refuse_fine_tuning(self, why: str) -> None:
        """Refuse options that only the fine-tuning of a teacher reads.

        Args:
            why: there is none.

        Raises:
            RecipeError: names them.
        """
        names = ["lora", "teacher_learning_rates"]
        if not self.compare:  # (which trains for as long as a teacher would be)
            names += ["teacher_examples", "teacher_epochs"]
        if said := [name for name in names if getattr(self, name) not in (None, False)]:
            raise RecipeError(f"{', '.join(said)}: {why}, and nothing is fine-tuned here; leave {_them(said)} out")

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
        return self.model or self.teacher  # type: ignore[return-value]  # see `require`

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
        from ..options.parsing import parse

        (settings,) = parse([cls], [str(path)], "settings", "")
        return dataclasses.replace(settings, **overrides)


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


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
