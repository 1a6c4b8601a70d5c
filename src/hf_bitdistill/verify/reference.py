"""What a packed student answered when it was packed, kept beside it: its largest logits on a few fixed prompts."""

from __future__ import annotations

import copy
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.batching import evaluating, forward_logits, model_device
from ..files.atomic import write_text
from ..files.model_folder import REFERENCE_FILE
from ..machine.environment import to
from ..modeling.model_heads import is_classifier


_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then",
    "def add(first, second):\n    return",
    "Question: What is the capital of France?\nAnswer:",
    "Gestern war es kalt, heute scheint die Sonne.",
)
_TOKENS, _POSITIONS, _TOP = 24, 6, 16


@dataclass(frozen=True)
class Answer:
    """One prompt.

    Attributes:
        prompt: token ids.
        spread: of the last positions, the standard deviation of all logits.
        tokens, logits: of the last positions, the most likely tokens and their logits, in order.
    """

    prompt: list[int]
    spread: list[float]
    tokens: list[list[int]]
    logits: list[list[float]]


def prompts(vocabulary: int, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Token ids of the fixed prompts; without a tokenizer, of any tokens."""
    if tokenizer is None:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (len(_TEXTS), _TOKENS // 2), generator=draw).tolist()
    encoded = [tokenizer(text)["input_ids"][:_TOKENS] for text in _TEXTS]
    return [[min(token, vocabulary - 1) for token in ids] or [0] for ids in encoded]


def answers(logits_of: Callable[[list[int]], torch.Tensor], given: Sequence[Sequence[int]]) -> list[Answer]:
    """What a model says of the prompts.

    Args:
        logits_of: token ids -> float logits `[T, V]`.
    """
    found = []
    for ids in given:
        logits = logits_of(list(ids))[-_POSITIONS:].float()
        top = logits.topk(min(_TOP, logits.shape[-1]))
        found.append(Answer(list(ids), logits.std(-1).tolist(), top.indices.tolist(), top.values.tolist()))
    return found


def answers_beside(logits_of: Callable[[list[int]], torch.Tensor], expected: Sequence[Answer]) -> list[dict[str, Any]]:
    """What a model says where answers are known, as [`deviation`] takes it.

    Args:
        logits_of: see [`answers`].

    Raises:
        FloatingPointError: a logit is not finite.
    """
    found = []
    for answer in expected:
        logits = logits_of(list(answer.prompt))[-len(answer.tokens) :].float()
        if not torch.isfinite(logits).all():
            raise FloatingPointError("its logits are not finite")
        wanted = logits.gather(1, torch.tensor(answer.tokens, device=logits.device))
        found.append({"logits": wanted.tolist(), "first": logits.argmax(-1).tolist()})
    return found


def answers_of(model: PreTrainedModel, given: Sequence[Sequence[int]]) -> list[Answer]:
    """What a transformers model says of the prompts."""
    with evaluating(model):
        return answers(logits_of_model(model), given)


def logits_of_model(model: PreTrainedModel) -> Callable[[list[int]], torch.Tensor]:
    """A function of token ids that returns a transformers model's logits, `[T, V]`, on the CPU."""

    def logits_of(ids: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids], device=model_device(model))
        return forward_logits(model, tokens, torch.ones_like(tokens))[0].cpu()

    return logits_of


def save_packed(
    packed: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
) -> None:
    """Save a packed model that is in memory, its tokenizer, and what it answers, for [`verify`].

    Args:
        options: of `save_pretrained`.
    """
    packed.save_pretrained(folder, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_reference(folder, packed, tokenizer)


def write_reference(
    folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> Path | None:
    """Keep a packed model's answers beside it, for [`verify`].

    Args:
        folder: where it was saved.
        model: the packed model in memory.

    Returns:
        The file; `None` for a model without a language model's head, whose answers are not compared.
    """
    if model.get_output_embeddings() is None:
        return None
    if model.dtype != torch.float32:
        # As `verify` computes: roundings of 16 bits tip over those to integers.
        model = to(copy.deepcopy(model), torch.float32)
    vocabulary = model.config.get_text_config().vocab_size
    return _write(folder, answers_of(model, prompts(vocabulary, tokenizer)))


def keep_answers(folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path | None:
    """Keep what a packed checkpoint that was written without a model in memory answers, for [`verify`]: it is loaded once.

    Returns:
        The file; `None` for a classifier, whose answers are not compared.
    """
    from .loaders import LOADERS, logits_of

    config = AutoConfig.from_pretrained(folder)
    if is_classifier(config):
        return None
    model, _ = LOADERS["native"](str(folder))
    return _write(folder, answers(logits_of(model), prompts(config.get_text_config().vocab_size, tokenizer)))


def carry_answers(model: str | Path, folder: str | Path) -> bool:
    """Leave what a packed model answered beside the same weights in another folder; returns whether that was known."""
    file = Path(model) / REFERENCE_FILE
    if file.is_file():
        shutil.copyfile(file, Path(folder) / REFERENCE_FILE)
    return file.is_file()


def _write(folder: str | Path, found: Sequence[Answer]) -> Path:
    file = Path(folder) / REFERENCE_FILE
    write_text(file, json.dumps({"version": 1, "answers": [asdict(each) for each in found]}) + "\n")
    return file


def read_reference(file: str | Path) -> list[Answer]:
    """What [`write_reference`] wrote.

    Raises:
        ValueError: the file is damaged; names it.
    """
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        return [Answer(**each) for each in values["answers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from None


def deviation(expected: Sequence[Answer], found: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """How far answers are from those expected.

    Args:
        found: `logits` of the expected answers' tokens and the `first` choices, by prompt and position.

    Returns:
        The median over all positions of the root mean square difference in units of the spread of the logits there; and the share of
        positions with the same first choice. A median, because one rounding that tips over changes single positions of a ternary model a
        lot, on another CPU even of a sound one.
    """
    distances, same = [], []
    for answer, other in zip(expected, found, strict=True):
        for spread, wanted, logits, tokens, first in zip(
            answer.spread, answer.logits, other["logits"], answer.tokens, other["first"], strict=True
        ):
            squares = [(a - b) ** 2 for a, b in zip(wanted, logits, strict=True)]
            distances.append(statistics.fmean(squares) ** 0.5 / max(spread, 1e-9))
            same.append(tokens[0] == first)
    return statistics.median(distances), sum(same) / len(same)
