"""Options of the commands as dataclasses, readable from a YAML file, from flags, or from both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from ..config import BitNetConfig, SubNormPlacement, WeightGranularity
from ..modeling.model_heads import HEADS
from ..recipe.efforts import EFFORTS


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
        default=EFFORTS["standard"].weight_granularity,
        metadata={"help": "What shares a weight scale.", "choices": ["tensor", "row", "group"]},
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
class TrainingTaskArguments:
    """The task and the rows to train on."""

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
    max_train_samples: int | None = field(default=None, metadata={"help": "Random subset of the training split."})

    def prompt_options(self) -> dict[str, Any]:
        """How examples become token ids: options of `build_dataset` and `evaluate_task`."""
        return {"max_length": self.max_length, "head": self.head, "use_chat_template": self.use_chat_template}


@dataclass
class TaskArguments(TrainingTaskArguments):
    """The task and its data."""

    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Random subset of the evaluation split."})
    eval_batch_size: int = field(default=16, metadata={"help": "Examples a batch in the task's evaluation."})


@dataclass
class CorpusArguments:
    """The text that is read."""

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


@dataclass
class StreamedCorpusArguments(CorpusArguments):
    """The text of continual pre-training."""

    streaming: bool = field(default=False, metadata={"help": "Read the corpus while training (needs max_steps)."})
