"""The help of commands whose options are dataclasses: our own options first, in groups, each on a line or two."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator

from transformers import HfArgumentParser, TrainingArguments


HELP_ALL = "--help_all"

# Of transformers' more than a hundred options of a training, those that a first run may want. `--help_all` lists the others.
_USUAL = (
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "bf16", "activation_checkpointing", "eval_strategy", "eval_steps",
    "save_steps", "logging_steps", "report_to", "seed", "push_to_hub", "hub_model_id", "resume_from_checkpoint",
)  # fmt: skip


class _Lines(argparse.HelpFormatter):
    """An option as it is written in the docs (`--max_steps N`), its default only where there is one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return ", ".join(action.option_strings)
        return f"{action.option_strings[0]} {_value(action)}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        if default is None or default is argparse.SUPPRESS or default is dataclasses.MISSING or "%(default)" in text:
            return text
        shown = str(getattr(default, "value", default))
        shown = (
            shown.lower() if isinstance(default, bool) else shown.replace("%", "%%")
        )  # (argparse formats it once more)
        return f"{text} (default: {shown})"


def _value(action: argparse.Action) -> str:
    """What stands for an option's value."""
    if action.choices:
        # (An enumeration of transformers' has many names.)
        names = [str(getattr(choice, "value", choice)) for choice in action.choices]
        return "{" + ",".join(names) + "}" if len(names) < 8 else names[0] + "|..."
    kind = "N" if action.type is int else "X" if action.type is float else "VALUE"
    if isinstance(action.default, bool):
        kind = "true|false"
    return f"{kind} ..." if action.nargs in ("+", "*") else kind


class OptionsParser(HfArgumentParser):
    """As its parent, with a help in groups: a dataclass each, its own options before those that it inherits. Of transformers'
    `TrainingArguments` only the usual ones, unless `--help_all` asks for all."""

    def __init__(self, kinds, **kwargs):
        super().__init__(kinds, formatter_class=_Lines, **kwargs)
        self.everything = False
        if any(issubclass(kind, TrainingArguments) for kind in self.dataclass_types):
            self.add_argument(
                HELP_ALL,
                action=_HelpAll,
                nargs=0,
                dest=argparse.SUPPRESS,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )

    def format_help(self) -> str:
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        # The first action of a name: the second of a true option is its `--no_` form.
        actions = {action.dest: action for action in reversed(self._actions)}
        for title, names in self._sections():
            formatter.start_section(title)
            formatter.add_arguments([actions[name] for name in names if name in actions])
            formatter.end_section()
        return formatter.format_help()

    def _sections(self) -> Iterator[tuple[str, list[str]]]:
        for kind in self.dataclass_types:
            own: dict[type, list[str]] = {}
            for field in dataclasses.fields(kind):
                # (A subclass may change a default: the option belongs to where it comes from.)
                owner = [base for base in kind.__mro__ if field.name in inspect.get_annotations(base)][-1]
                own.setdefault(owner, []).append(field.name)
            for owner in kind.__mro__:
                if owner in own:
                    yield self._section(owner, own[owner])

    def _section(self, owner: type, names: list[str]) -> tuple[str, list[str]]:
        if owner is not TrainingArguments:
            first = re.split(r"[.:](?:\s|$)", " ".join((owner.__doc__ or "").split()))[0]
            return re.sub(r"\[?`(\w+)`\]?", r"\1", first), names
        if self.everything:
            return "Training, all of transformers' TrainingArguments", names
        usual = [name for name in _USUAL if name in names]
        rest = len(names) - len(usual)
        return f"Training, as transformers' TrainingArguments; {HELP_ALL} lists the other {rest}", usual


class _HelpAll(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        parser.everything = True
        parser.print_help()
        parser.exit()
