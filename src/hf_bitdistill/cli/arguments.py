"""Options of the commands as dataclasses, readable from a YAML file, from flags, or from both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.utils import is_torch_xla_available

from hf_bitdistill_cli.option_file import unknown_option, with_file

from ..config import BitNetConfig, SubNormPlacement, WeightGranularity
from ..model_heads import HEADS
from .options_parser import OptionsParser


@dataclass
class ModelArguments:
    """The model to work on."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id. Full precision, or a student made before."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Dtype of the (latent) weights.", "choices": ["float32", "bfloat16", "auto"]},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention of transformers: sdpa, eager, flash_attention_2, ... Default: the model's."},
    )


@dataclass
class StudentArguments:
    """How a full-precision model becomes a student; ignored for a model that is one already."""

    sub_norm: str = field(
        default="output", metadata={"help": "Where SubLNs are put.", "choices": ["output", "all", "none"]}
    )
    sub_norm_eps: float = field(default=1e-6, metadata={"help": "Epsilon of the SubLNs."})
    weight_granularity: str = field(
        default="tensor", metadata={"help": "What shares a weight scale.", "choices": ["tensor", "row", "group"]}
    )
    group_size: int = field(default=128, metadata={"help": "Columns a group: 64 or 128."})
    activation_bits: int = field(default=8, metadata={"help": "8, or 0 for activations in floating point."})
    modules_to_not_convert: list[str] | None = field(
        default=None, metadata={"help": "Modules that stay in full precision."}
    )
    modules_without_sub_norm: list[str] | None = field(
        default=None, metadata={"help": "Projections without a SubLN, whatever sub_norm says."}
    )
    calibrate_sub_norm: bool = field(
        default=True, metadata={"help": "Start the SubLNs from activations of a few batches instead of from one."}
    )
    calibration_batches: int = field(default=8, metadata={"help": "Batches for that, of 8 examples or one block."})

    def to_config(self) -> BitNetConfig:
        return BitNetConfig(
            sub_norm=cast(SubNormPlacement, self.sub_norm),
            sub_norm_eps=self.sub_norm_eps,
            weight_granularity=cast(WeightGranularity, self.weight_granularity),
            group_size=self.group_size,
            activation_bits=self.activation_bits or None,
            modules_to_not_convert=self.modules_to_not_convert,
            modules_without_sub_norm=self.modules_without_sub_norm,
        )


@dataclass
class TaskArguments:
    """The task and its data."""

    task: str | None = field(
        default=None,
        metadata={"help": "sst2, mnli, rte, qnli, cnn_dailymail, xsum, or a task file of your own (task.yaml)."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the task's files. Default: the Hub."})
    head: str = field(
        default="causal_lm",
        metadata={
            "help": "Continue the prompt with the label word, or classify.",
            "choices": list(HEADS),
        },
    )
    use_chat_template: bool = field(
        default=False, metadata={"help": "Put prompts into the tokenizer's chat template."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of prompt and answer. Default: the task's."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on (any file stem in data_dir)."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Random subset of the training split."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Random subset of the evaluation split."})
    eval_batch_size: int = field(default=16, metadata={"help": "Examples a batch in the task's evaluation."})

    def prompt_options(self) -> dict[str, Any]:
        """How examples become token ids: options of `build_dataset` and `evaluate_task`."""
        return {"max_length": self.max_length, "head": self.head, "use_chat_template": self.use_chat_template}


@dataclass
class CorpusArguments:
    """The text of continual pre-training or of a perplexity."""

    corpus: str | None = field(default=None, metadata={"help": "File, folder or Hub id of a text dataset."})
    corpus_config: str | None = field(default=None, metadata={"help": "Configuration of a corpus on the Hub."})
    corpus_split: str = field(default="train", metadata={"help": "Split of the corpus."})
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    sample_by: str = field(
        default="document",
        metadata={"help": "What a document is in a .txt file.", "choices": ["document", "paragraph", "line"]},
    )
    block_size: int = field(default=512, metadata={"help": "Tokens a block."})
    parse_special_tokens: bool = field(
        default=False,
        metadata={"help": "Names of special tokens in the text (<s>) become these tokens. Default: they are text."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read the corpus while training (needs max_steps)."})


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
