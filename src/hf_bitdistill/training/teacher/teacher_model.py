"""The teacher: loading, freezing, checking that it reads the student's tokens."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ..._compat import uncompiled
from ...machine.whole_models import whole_models
from ...modeling.model_heads import Head, auto_class, model_head
from ...nn.carried_adapters import without_adapters


logger = logging.get_logger(__name__)

_SHOWN_TOKENS = 3

# Borders of packed documents, which forwards hand on to attention (and recurrent) layers without naming them.
PACKING_INPUTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def load_teacher(
    teacher: PreTrainedModel | nn.Module | str | os.PathLike, head: Head, init_kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """A frozen teacher in eval mode, from a model or from a name or path.

    Args:
        teacher: a model, or what `from_pretrained` takes.
        head: the student's head; decides which auto class loads the teacher and is required of a given model.
        init_kwargs: keyword arguments of `from_pretrained`.

    Raises:
        ValueError: the heads differ, the checkpoint lacks weights (a head that was never trained, say), or
            `init_kwargs` come with a model object.
    """
    model: Any = teacher
    if isinstance(teacher, (str, os.PathLike)):
        name = teacher
        # Each process shards a whole teacher.
        with whole_models():
            model, info = auto_class(head).from_pretrained(name, **(init_kwargs or {}), output_loading_info=True)
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(
                f"the teacher {name} has no weights for {', '.join(missing[:3])}: it was not trained with a {head} head, "
                "or its checkpoint is incomplete"
            )
    elif init_kwargs:
        raise ValueError("teacher_model_init_kwargs apply to a teacher given by name, but a model was given")
    teacher_head = model_head(model)
    if teacher_head != head:
        raise ValueError(f"the student has a {head} head and the teacher a {teacher_head} head")
    return model.eval().requires_grad_(False)


def check_same_classes(student: Any, teacher: Any) -> None:
    """Refuses classifiers which differ in labels, or in the padding token by which they find the last token.

    Raises:
        ValueError: naming the difference.
    """
    if student.config.num_labels != teacher.config.num_labels:
        raise ValueError(
            f"the student has {student.config.num_labels} labels and the teacher {teacher.config.num_labels}"
        )
    student_labels, teacher_labels = student.config.id2label, teacher.config.id2label
    generic = {index: f"LABEL_{index}" for index in range(student.config.num_labels)}
    if student_labels != teacher_labels and generic not in (student_labels, teacher_labels):
        raise ValueError(f"student and teacher name their labels differently: {student_labels} and {teacher_labels}")
    pads = [model.config.get_text_config().pad_token_id for model in (student, teacher)]
    if pads[0] != pads[1]:
        raise ValueError(
            f"config.pad_token_id is {pads[0]} in the student and {pads[1]} in the teacher: they would read their "
            "classes from different tokens"
        )


def read_same_padding(models: Iterable[Any], processing_class: Any) -> None:
    """Classifiers read their class from the last token that is no padding, by `config.pad_token_id`: give it the value of the tokenizer that
    pads. (`Trainer` does so for the model that it trains alone, and when it trains.)"""
    pad = getattr(getattr(processing_class, "tokenizer", processing_class), "pad_token_id", None)
    if pad is None:
        return
    for model in models:
        config = model.config.get_text_config()
        if config.pad_token_id != pad:
            logger.warning(
                f"{type(model).__name__}: config.pad_token_id is {config.pad_token_id} and the tokenizer pads with {pad}, which it has now."
            )
            config.pad_token_id = pad


def load_teacher_tokenizer(name_or_path: str | os.PathLike | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved with a teacher, or `None` (with a warning) if there is none or its origin is unknown."""
    if not name_or_path:
        logger.warning("The teacher's tokenizer was not compared with the student's: pass teacher_processing_class.")
        return None
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning(f"The teacher {name_or_path} has no tokenizer to compare with the student's ({reason}).")
        return None


def check_same_tokenizer(student: Any, teacher: Any) -> None:
    """Refuses a teacher which reads other tokens than the student.

    Logits are compared column by column, so both must map the same tokens to the same ids; equal vocabulary sizes
    prove nothing, and different widths of the logits (padding rows of the embedding) do no harm. bos, eos and unk
    must agree as well. The padding token may differ: padding is masked everywhere.

    Args:
        student: tokenizer, or a processor that has one as `.tokenizer`.
        teacher: likewise.

    Raises:
        ValueError: naming the first tokens that differ.
    """
    student, teacher = (getattr(processor, "tokenizer", processor) for processor in (student, teacher))
    vocabularies = student.get_vocab(), teacher.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        by_id = [{index: token for token, index in vocabulary.items()} for vocabulary in vocabularies]
        different = [i for i in sorted(by_id[0].keys() | by_id[1].keys()) if by_id[0].get(i) != by_id[1].get(i)]
        shown = "; ".join(
            f"id {i}: student {by_id[0].get(i)!r}, teacher {by_id[1].get(i)!r}" for i in different[:_SHOWN_TOKENS]
        )
        raise ValueError(
            f"student and teacher have different tokenizers ({len(vocabularies[0])} and {len(vocabularies[1])} "
            f"tokens, {len(different)} ids differ): {shown}"
        )
    for name in ("bos_token_id", "eos_token_id", "unk_token_id"):
        ids = getattr(student, name, None), getattr(teacher, name, None)
        if ids[0] != ids[1]:
            raise ValueError(f"student and teacher tokenizers differ in {name}: {ids[0]} and {ids[1]}")


def choose_teacher(
    teacher: PreTrainedModel | nn.Module | str | os.PathLike,
    student: nn.Module,
    head: Head,
    init_kwargs: Mapping[str, Any] | None,
    processing_class: Any,
    teacher_processing_class: Any,
) -> tuple[nn.Module, str | None]:
    """A teacher that reads and answers as the student does, see [`load_teacher`], and its name.

    Args:
        teacher: a model, or what `from_pretrained` takes.
        student: unwrapped.
        head: of the student.
        init_kwargs: keyword arguments of `from_pretrained`.
        processing_class, teacher_processing_class: the tokenizers. The teacher's is looked for where it came from.

    Raises:
        ValueError: it does not fit the student.
    """
    if teacher is student:
        raise ValueError("teacher and student are the same object: load the teacher separately")
    origin = teacher if isinstance(teacher, (str, os.PathLike)) else _origin(teacher)
    if processing_class is not None:
        if teacher_processing_class is None:
            # A tokenizer beside it, where it came from, is the teacher's.
            teacher_processing_class = load_teacher_tokenizer(origin)
        if teacher_processing_class is not None:
            check_same_tokenizer(processing_class, teacher_processing_class)
    name = None if origin is None else str(origin)
    loaded: Any = load_teacher(teacher, head, init_kwargs)
    if head == "sequence_classification":
        check_same_classes(student, loaded)
        read_same_padding((student, loaded), processing_class)
    else:
        models: tuple[Any, ...] = (student, loaded)
        widths = [model.config.get_text_config().vocab_size for model in models]
        if widths[0] != widths[1] and (processing_class is None or teacher_processing_class is None):
            raise ValueError(
                f"the student's vocabulary has {widths[0]} rows and the teacher's {widths[1]}: pass "
                "processing_class and teacher_processing_class, to show that the tokenizers are the same"
            )
    return loaded, name


def _origin(model: Any) -> str | None:
    """Where a model in memory came from, which it knows."""
    return getattr(model.config, "name_or_path", None)


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the forward of the model itself, seen through torch.compile, PEFT and wrappers of the instance."""
    model = without_adapters(uncompiled(model))
    return inspect.signature(type(model).forward).parameters


def model_inputs(model: nn.Module, batch: Mapping[str, Any], positions: torch.Tensor | None) -> dict[str, Any]:
    """What of a batch a model's forward takes, without labels: the loss is not the model's business here.

    Args:
        model: unwrapped.
        batch: the collated batch.
        positions: 1-D positions whose logits are wanted, where the forward can be told (`logits_to_keep`).
    """
    parameters = forward_parameters(model)
    taken = set(parameters) - {"labels"}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        taken.update(PACKING_INPUTS)
    inputs = {name: value for name, value in batch.items() if name in taken}
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    if positions is not None and "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = positions
    return inputs
