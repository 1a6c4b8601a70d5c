"""The parser of commands whose options are dataclasses. Its help is that of its spec: our own options first, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from hf_bitdistill_cli.parsing import add_help_all, help_of


# Of transformers' more than a hundred options of a training, those that a first run may want. `--help_all` lists the others.
USUAL = (
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "bf16", "activation_checkpointing", "eval_strategy", "eval_steps",
    "save_steps", "logging_steps", "report_to", "seed", "push_to_hub", "hub_model_id", "resume_from_checkpoint",
)  # fmt: skip


class OptionsParser(HfArgumentParser):
    """As its parent, with what the door must know of the command.

    Args:
        first: what may stand before the flags, for the help.
        model_first: whether a first word that is no YAML file is the model.
        required: options without which nothing can be done; of `a or b` one.
        required_unless: options with which others are required.
    """

    def __init__(
        self,
        kinds: Sequence[type],
        prog: str,
        description: str,
        first: str = "CONFIG.yaml",
        model_first: bool = False,
        required: Sequence[str] = (),
        required_unless: Sequence[str] = (),
    ):
        classes: Any = list(kinds)
        super().__init__(classes, prog=prog, description=description, allow_abbrev=False)
        self.first, self.model_first, self.required = first, model_first, list(required)
        self.required_unless = list(required_unless)
        self.everything = False
        if any(issubclass(kind, TrainingArguments) for kind in self.dataclass_types):
            add_help_all(self)

    def format_help(self) -> str:
        from .parser_spec import of_parser

        return help_of(of_parser(self), self.prog, self.everything)
