"""The full-precision models that a run is given, by name: which one the student is made of, and which one teaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME

from ..config import quant_method
from ..data.batch_checks import context_length
from ..data.tokenizers import load_tokenizer
from ..files.data_formats import looks_like_path
from ..files.json_files import read_json
from ..modeling.locate import find_model
from ..training import check_same_tokenizer
from .settings import RecipeError, RecipeSettings


# What two models of one shape have alike. Not their vocabulary: a fine-tuned model may have other rows of padding in it.
_SHAPE = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "moe_intermediate_size", "num_experts", "num_local_experts",
)  # fmt: skip


@dataclass(frozen=True)
class GivenModels:
    """What a run begins with. All of it is in full precision and has one tokenizer.

    Attributes:
        base: the model that was given, or the one that an adapter in its place adapts.
        teacher: a fine-tuned model, or an adapter; `None`: the base is fine-tuned here, or teaches as it is.
        adapted: of a teacher that is an adapter, the model that it adapts.
        differs: how the teacher's shape differs from the base's, for people; empty: it does not, so that the student can be made of either.
        config: of the model that the student is made of.
        context: the configuration of whichever of them reads fewer tokens.
    """

    base: str
    teacher: str | None
    adapted: str | None
    differs: str
    tokenizer: PreTrainedTokenizerBase
    config: Any
    context: Any

    @property
    def like_teacher(self) -> str:
        """A model of the teacher's shape that can be loaded before there is a teacher."""
        return self.adapted or self.teacher or self.base


def read_given(settings: RecipeSettings) -> GivenModels:
    """The models that the settings name.

    Raises:
        RecipeError: one is no full-precision model, an adapter does not say of what, options contradict each other.
        ValueError: their tokenizers differ.
        OSError: one cannot be read.
    """
    base, teacher, adapted = str(settings.base), settings.teacher and str(settings.teacher), None
    if (file := _adapter_config(base)) is not None:
        if teacher not in (None, base):
            raise RecipeError(
                f"{base} is a PEFT adapter, which would be the teacher: give the model that it adapts as --model, or leave --teacher out"
            )
        settings.refuse_fine_tuning(f"{base} is a PEFT adapter, which is the teacher when it is merged")
        teacher, base = base, _adapted_model(base, file)
        adapted = base
    elif teacher is not None and (file := _adapter_config(teacher)) is not None:
        adapted = _adapted_model(teacher, file)
    tokenizer = load_tokenizer(base)
    config = context = check_source(base)
    like_teacher, differs = adapted or teacher or base, ""
    if like_teacher != base:
        other = check_source(like_teacher)
        check_same_tokenizer(tokenizer, load_tokenizer(like_teacher))
        differs = _differences(other, config)
        lengths = [context_length(each) or float("inf") for each in (config, other)]
        context = config if lengths[0] <= lengths[1] else other
        # With plain text the student is made of the model as it came.
        config = config if differs or settings.corpus is not None else other
    return GivenModels(base, teacher, adapted, differs, tokenizer, config, context)


def full_precision_source(name: str) -> str:
    """The model itself, or the one that it is a PEFT adapter of.

    Raises:
        RecipeError: the adapter does not say of which model, or that is not there.
    """
    file = _adapter_config(name)
    return name if file is None else _adapted_model(name, file)


def _differences(teacher: Any, base: Any) -> str:
    pairs = {name: [getattr(each.get_text_config(), name, None) for each in (teacher, base)] for name in _SHAPE}
    return ", ".join(f"{name} {theirs}, not {own}" for name, (theirs, own) in pairs.items() if theirs != own)


def _adapter_config(name: str) -> Path | None:
    """The file by which a folder or a repository on the Hub is a PEFT adapter; `None` where it has none, or is not there."""
    folder = Path(name).expanduser()
    if looks_like_path(name) or folder.exists():
        return folder / ADAPTER_CONFIG_NAME if (folder / ADAPTER_CONFIG_NAME).is_file() else None
    try:
        return Path(hf_hub_download(name, ADAPTER_CONFIG_NAME))
    # (Why a repository cannot be read is said where its model is looked for.)
    except (EntryNotFoundError, HFValidationError, HTTPError, OSError):
        return None


def _adapted_model(adapter: str, file: Path) -> str:
    """The model that a PEFT adapter belongs to.

    Raises:
        RecipeError: its file names none, or one that is not there.
    """
    base = read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise RecipeError(
            f"{adapter} is a PEFT adapter that does not say of which model: write its name into {ADAPTER_CONFIG_NAME} (base_model_name_or_path)"
        )
    try:
        return find_model(base)
    except FileNotFoundError as error:
        raise RecipeError(
            f"{adapter} is a PEFT adapter of {base}: {error}. Put the model there, or change base_model_name_or_path in its {ADAPTER_CONFIG_NAME}"
        ) from error


def check_source(name_or_path: str) -> Any:
    """The configuration of a full-precision model that a student can be made of.

    Raises:
        RecipeError: it is a student, packed, or quantised by another method.
    """
    config = AutoConfig.from_pretrained(find_model(name_or_path))
    if getattr(config, "quantization_config", None) is not None:
        raise RecipeError(
            f"{name_or_path} is quantised already (by {quant_method(config)!r}): the recipe starts from a model in full precision. For a student that is "
            "to be trained further there is `bitdistill distill`"
        )
    return config
