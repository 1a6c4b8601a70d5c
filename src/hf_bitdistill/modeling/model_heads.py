"""The two heads a model can have: which one it has, and what transformers calls what belongs to it. (What a head weighs: `lm_head.py`.)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

Head = Literal["causal_lm", "sequence_classification"]
HEADS: tuple[Head, ...] = ("causal_lm", "sequence_classification")

#: What pipelines and the Hub call what a model with this head does.
PIPELINE_TASKS: dict[Head, str] = {"causal_lm": "text-generation", "sequence_classification": "text-classification"}


def check_known_head(head: str) -> None:
    """Refuses what is no head.

    Raises:
        ValueError: In that case.
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")


def auto_class(head: str) -> Any:
    """The class of transformers whose `from_pretrained` and `from_config` make a model with this head.

    Raises:
        ValueError: there is no such head.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    check_known_head(head)
    return AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification


def _names_classifier(class_names: Iterable[str]) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in class_names)


def head_of(config: PreTrainedConfig) -> Head:
    """The head of a model that was saved with this config; a language model's where it does not say."""
    return "sequence_classification" if _names_classifier(config.architectures or ()) else "causal_lm"


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether [`head_of`] is a classification head."""
    return head_of(config) == "sequence_classification"


def model_head(model: nn.Module) -> Head:
    """Which of the two heads a model (unwrapped from DDP and the like; PEFT is looked through) has.

    Raises:
        ValueError: another head, a regression or a multi-label head.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    name = type(inner).__name__
    names = {cls.__name__ for cls in type(inner).__mro__}
    if _names_classifier(names):
        problem, labels = getattr(inner.config, "problem_type", None), inner.config.num_labels
        if problem not in (None, "single_label_classification") or labels < 2:
            raise ValueError(
                f"{name} with problem_type={problem!r} and num_labels={labels}: only single-label classification with "
                "at least two classes can be distilled, not regression or multi-label classification"
            )
        return "sequence_classification"
    if names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) or name.endswith("ForCausalLM"):
        return "causal_lm"
    raise ValueError(f"{name} has neither a causal language modelling nor a sequence classification head")
