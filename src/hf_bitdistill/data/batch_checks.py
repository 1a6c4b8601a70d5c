"""Whether a batch fits the models that will read it: told with row and value, before it reaches a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..modeling.model_heads import Head
from .batches import DOCUMENTS, PreparedBatch, prepare_batch, text_positions
from .preprocessing import IGNORE_INDEX


def context_length(config: Any) -> int | None:
    """The longest sequence a model is made for; `None` where positions have no end (ALiBi, recurrent models).

    Of scaled rotary positions it is the scaled length, whether or not `max_position_embeddings` was raised with it.
    """
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or getattr(config, "alibi", False):
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    for kind in kinds:
        factor = kind.get("factor")
        if isinstance(factor, (int, float)):
            limit = max(limit, int(factor * (kind.get("original_max_position_embeddings") or limit)))
    return limit


@dataclass(frozen=True)
class ModelLimits:
    """What models can read.

    Args:
        vocabulary: input ids are below it.
        classes: labels are below it.
        context: longest sequence, and whose limit it is; `None`: no limit.
    """

    vocabulary: int | None
    classes: int | None
    context: int | None
    context_of: str = "model"

    @classmethod
    def of(cls, models: Mapping[str, Any], head: Head = "causal_lm") -> ModelLimits:
        """The limits that all of `models` (by the name for messages; the student first) share."""
        contexts = {name: context_length(model.config) for name, model in models.items()}
        limited = {name: value for name, value in contexts.items() if value is not None}
        shortest = min(limited, key=limited.__getitem__, default=None)
        vocabularies = [size for size in map(_vocabulary, models.values()) if size is not None]
        student = next(iter(models.values()))
        classes = student.config.num_labels if head == "sequence_classification" else _vocabulary(student)
        return cls(
            vocabulary=min(vocabularies, default=None),
            classes=classes,
            context=None if shortest is None else limited[shortest],
            context_of="model" if len(models) == 1 or shortest is None else shortest,
        )

    def check_length(self, length: int, what: str) -> None:
        """Refuse more tokens than the context.

        Raises:
            ValueError: names `what`.
        """
        if self.context is not None and length > self.context:
            raise ValueError(
                f"{what} has {length} tokens and the {self.context_of}'s context is {self.context} (max_position_embeddings of its "
                "config): shorten the sequences, or raise it (with rope_parameters) if the model is meant to read more"
            )

    def check_ids(self, ids: Tensor, what: Callable[[int], str]) -> None:
        """Refuse tokens that no embedding has. `what(row)` names a row of `ids`, `[B, T]`.

        Raises:
            ValueError: names the row, the token and the value.
        """
        if ids.is_floating_point():
            raise ValueError(f"input_ids must be integers, they are {ids.dtype}")
        if self.vocabulary is None or not ids.numel():
            return
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= self.vocabulary:
            row, token = ((ids < 0) | (ids >= self.vocabulary)).nonzero()[0].tolist()
            raise ValueError(
                f"{what(row)}: token {token} is {ids[row, token].item()}, and the embedding has {self.vocabulary} rows: the tokenizer "
                "belongs to another model, or tokens were added without resize_token_embeddings"
            )

    def check_sequences(self, sequences: Sequence[Sequence[int]], what: str, first: int = 0, room: int = 0) -> None:
        """Refuse lists of token ids that are empty, too long, or no tokens of the model.

        Args:
            sequences: of token ids.
            what: names one of them.
            first: the first one's number.
            room: tokens that will come after each.

        Raises:
            ValueError: names the sequence by its number.
        """
        for number, sequence in enumerate(sequences, first):
            name = f"{what} {number}"
            if not len(sequence):
                raise ValueError(f"{name} is empty (0 tokens): leave it out")
            self.check_length(len(sequence) + room, name if not room else f"{name}, with {room} for the answer,")
            self.check_ids(torch.as_tensor(sequence)[None], partial(_named, name))


def _vocabulary(model: Any) -> int | None:
    """Rows of the embedding; of one in shards, what the config says."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    rows = getattr(embeddings, "num_embeddings", None)
    return rows if isinstance(rows, int) else getattr(model.config.get_text_config(), "vocab_size", None)


def _named(name: str, row: int) -> str:
    return name


def _name(row: int) -> str:
    return f"example {row} of the batch"


def check_examples(examples: Iterable[Any], head: Head) -> None:
    """Refuse examples that a collator would pad, drop or misalign without a word: empty ones, and labels of another length.

    Args:
        examples: what a collator is given; anything but mappings with `input_ids` passes.
        head: a causal LM has a label a token.

    Raises:
        ValueError: names the example.
    """
    for row, example in enumerate(examples):
        ids = example.get("input_ids") if isinstance(example, Mapping) else None
        if ids is None or not hasattr(ids, "__len__"):
            continue
        if not len(ids):
            raise ValueError(f"{_name(row)} is empty (0 tokens): leave such examples out of the dataset")
        labels = example.get("labels")
        if head == "causal_lm" and labels is not None and hasattr(labels, "__len__") and len(labels) != len(ids):
            raise ValueError(
                f"{_name(row)} has {len(ids)} input_ids and {len(labels)} labels: a causal LM has one label a token ({IGNORE_INDEX} where "
                "there is nothing to learn); the model shifts them"
            )


def check_batch(batch: PreparedBatch, limits: ModelLimits, head: Head | None = None) -> None:
    """Refuse what models would crash on, or silently learn something else from.

    Args:
        batch: on any device (on an accelerator it is waited for).
        limits: of the models.
        head: with it, labels are looked at too.

    Raises:
        ValueError: names what, the row and the value.
    """
    ids = batch.get("input_ids")
    mask, documents = batch.get("attention_mask"), batch.get(DOCUMENTS)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        lengths = mask.sum(1)
        if mask.shape[1] and not bool(lengths.all()):
            raise ValueError(f"{_name(int((lengths == 0).nonzero()[0]))} is empty: its attention_mask is 0 everywhere")
    else:
        lengths = None
    if isinstance(ids, Tensor) and ids.ndim == 2:
        if not ids.numel():
            raise ValueError(f"the batch is empty: input_ids of shape {tuple(ids.shape)}")
        limits.check_ids(ids, _name)
        _check_length(batch, ids.shape, lengths, limits)
    labels = batch.get("labels")
    if head is None or not isinstance(labels, Tensor):
        return
    if labels.is_floating_point():
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: a classifier needs one integer label a sequence, a causal LM one "
            "a token; regression and multi-label classification cannot be distilled"
        )
    if head == "causal_lm":
        _check_token_labels(labels, ids, mask, documents)
    elif documents is not None and labels.ndim == 1 and int(documents.max()) + 1 > documents.shape[0]:
        raise ValueError(
            "the batch is packed (several documents a row), and a classification head has one output a row: pad one document a row"
        )
    _check_range(labels, limits.classes, "vocabulary" if head == "causal_lm" else "classes (num_labels)")


def _check_length(batch: PreparedBatch, shape: torch.Size, lengths: Tensor | None, limits: ModelLimits) -> None:
    if limits.context is None or shape[1] <= limits.context:
        return
    positions = text_positions(batch, shape[0])
    if positions is not None:
        longest, row = (int(value) for value in positions.amax(1).max(0))
        limits.check_length(longest + 1, f"the longest sequence of {_name(row)}")
        return
    row = 0 if lengths is None else int(lengths.argmax())
    length = shape[1] if lengths is None else int(lengths[row])
    limits.check_length(length, _name(row))
    limits.check_length(shape[1], "the padded batch")


def _check_token_labels(labels: Tensor, ids: Any, mask: Any, documents: Any) -> None:
    if not isinstance(ids, Tensor):
        return
    if labels.shape != ids.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit input_ids of shape {tuple(ids.shape)}: a causal LM has one label a token"
        )
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        wrong = (labels != IGNORE_INDEX) & (mask == 0)
        if bool(wrong.any()):
            row, token = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{_name(row)}: token {token} is padding (attention_mask 0) and has the label {labels[row, token].item()}: padding must "
                f"have the label {IGNORE_INDEX}"
            )
    if isinstance(documents, Tensor):
        starts = documents.diff(dim=1, prepend=documents[:, :1]) != 0
        wrong = starts & (documents >= 0) & (labels != IGNORE_INDEX) & (labels != ids)
        if bool(wrong.any()):
            row, token = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"row {row} of the batch: a document starts at token {token} and its first label is {labels[row, token].item()}, which "
                f"the end of another document would have to predict: it must be {IGNORE_INDEX} or the token itself; write an "
                "end-of-text token into the document instead"
            )


def _check_range(labels: Tensor, classes: int | None, what: str) -> None:
    if classes is None or not labels.numel():
        return
    low, high = (int(value) for value in labels.aminmax())
    # Most batches have ignored labels: only another negative one is looked for.
    if (
        high < classes
        and (low >= 0 or low == IGNORE_INDEX)
        and not bool(((labels < 0) & (labels != IGNORE_INDEX)).any())
    ):
        return
    place = (((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= classes)).nonzero()[0].tolist()
    where = _name(place[0]) if len(place) == 1 else f"{_name(place[0])}, token {place[1]}"
    raise ValueError(
        f"{where}: label {labels[tuple(place)].item()} is outside the {classes} {what}: labels are 0 to {classes - 1}, or {IGNORE_INDEX} for "
        "none"
    )


class CheckedCollator:
    """A collator whose examples and batches are checked, and whose batches are prepared, see [`prepare_batch`].

    On the CPU, and in the workers of a data loader where there are any: a training step does not wait for it.
    """

    def __init__(self, collator: Callable[[list], Any], limits: ModelLimits, head: Head):
        self.collator, self.limits, self.head = collator, limits, head

    def __call__(self, examples: list) -> Any:
        check_examples(examples, self.head)
        batch = self.collator(examples)
        if not isinstance(batch, Mapping):
            return batch
        batch = prepare_batch(batch)
        check_batch(batch, self.limits, self.head)
        return batch

    def __getattr__(self, name: str) -> Any:
        # Options of the collator itself, which Trainer and others ask for.
        if name.startswith("__") or name == "collator":
            raise AttributeError(name)
        return getattr(self.collator, name)
