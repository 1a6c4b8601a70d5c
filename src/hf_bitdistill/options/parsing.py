"""Dataclasses from a YAML file, from flags, or from both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.utils import is_torch_xla_available

from hf_bitdistill_cli.option_file import unknown_option, with_file

from .options_parser import OptionsParser


def parse(
    kinds: Sequence[type], argv: Sequence[str], prog: str, description: str, first: str = "CONFIG.yaml"
) -> tuple:
    """Dataclasses from `[config.yaml] [--flag value ...]`, see [`read`].

    Args:
        first: what may stand before the flags, for the help.
    """
    return read(OptionsParser(kinds, prog, description, first), argv)


def read(parser: OptionsParser, argv: Sequence[str]) -> tuple:
    """The dataclasses of a parser from `[config.yaml] [--flag value ...]`; a flag wins over the file. Without an accelerator `use_cpu` is
    true by default, so that `--bf16` trains on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a YAML mapping, or it or a flag names an unknown option.
        SystemExit: a value of the wrong type or not among the choices, or `--help` (argparse).
    """
    options = _names(parser)
    if "use_cpu" in options and not torch.accelerator.is_available() and not is_torch_xla_available():
        # The device is the same either way, but transformers refuses bf16 on a CPU that is not asked for.
        parser.set_defaults(use_cpu=True)
    argv = with_file(argv, options, parser.model_first)
    *parsed, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        raise ValueError(unknown_option(rest[0], options))
    for training in parsed:
        if isinstance(training, TrainingArguments):
            check_reporting(training.report_to)
    return tuple(parsed)


def given_options(parser: OptionsParser, argv: Sequence[str]) -> set[str]:
    """Names of the options that a command line, or its file, gives; arguments as of [`read`], which must have accepted them."""
    options = _names(parser)
    words = with_file(argv, options, parser.model_first)
    flags = (word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word[:2] == "--")
    return {name.removeprefix("no_") if name not in options else name for name in flags}


def _names(parser: OptionsParser) -> list[str]:
    return [field.name for kind in parser.dataclass_types for field in dataclasses.fields(kind) if field.init]


def check_reporting(names: Sequence[str]) -> None:
    """Refuse to report to what is not installed here, before any work.

    Raises:
        ValueError: naming it.
    """
    available = get_available_reporting_integrations()
    for name, callback in zip(names, get_reporting_integration_callbacks(names), strict=True):
        if name in available:
            continue
        try:
            callback()  # (what is not installed says so first of all)
        except (ImportError, RuntimeError) as error:
            raise ValueError(
                f"--report_to {name} needs a package that is not installed here ({error}): install it, or give --report_to none"
            ) from None


def require(value, option: str):
    """`value`, or a one-line error that asks for the option."""
    if value is None:
        raise ValueError(f"--{option} is required")
    return value
