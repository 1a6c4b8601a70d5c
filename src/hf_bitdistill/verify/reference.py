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
import xxhash
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.batching import check_finite, evaluating, forward_logits, model_device
from ..files.atomic import write_text
from ..files.model_folder import REFERENCE_FILE
from ..machine.environment import describe_environment, to
from ..modeling.lm_head import head_is_quantized
from ..modeling.model_heads import is_classifier
from .loaders import LOADERS


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
        spread: of the last positions, the standard deviation of all logits. A classifier has one position a prompt, and the root mean square
            of its logits on all prompts.
        tokens, logits: of the last positions, the most likely tokens (of a classifier, its classes) and their logits, in order.
    """

    prompt: list[int]
    spread: list[float]
    tokens: list[list[int]]
    logits: list[list[float]]


@dataclass(frozen=True)
class Reference:
    """What a model answered when it was packed.

    Attributes:
        answers: to each prompt.
        conditions: under which, see [`conditions`]; empty where they were not kept.
    """

    answers: list[Answer]
    conditions: dict[str, Any]


def prompts(vocabulary: int, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Token ids of the fixed prompts; without a tokenizer, of any tokens."""
    if tokenizer is None:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (len(_TEXTS), _TOKENS // 2), generator=draw).tolist()
    encoded = [tokenizer(text)["input_ids"][:_TOKENS] for text in _TEXTS]
    return [[min(token, vocabulary - 1) for token in ids] or [0] for ids in encoded]


def answers_of(model: Any, given: Sequence[Sequence[int]]) -> list[Answer]:
    """What a model, by either loader or in memory, says of the prompts."""
    logits_of = logits_of_model(model)
    with evaluating(model):
        logits = [logits_of(list(ids))[-_POSITIONS:] for ids in given]
    if is_classifier(model.config):
        # (The two or three of one prompt may be next to the same.)
        spreads = [[torch.cat(logits).square().mean().sqrt().item()]] * len(logits)
    else:
        spreads = [each.std(-1).tolist() for each in logits]
    found = []
    for ids, each, spread in zip(given, logits, spreads, strict=True):
        top = each.topk(min(_TOP, each.shape[-1]))
        found.append(Answer(list(ids), spread, top.indices.tolist(), top.values.tolist()))
    return found


def answers_beside(logits_of: Callable[[list[int]], torch.Tensor], expected: Sequence[Answer]) -> list[dict[str, Any]]:
    """What a model says where answers are known, as [`deviation`] takes it.

    Args:
        logits_of: see [`logits_of_model`].

    Raises:
        FloatingPointError: a logit is not finite.
    """
    found = []
    for answer in expected:
        logits = logits_of(list(answer.prompt))[-len(answer.tokens) :]
        check_finite(logits, "logits")
        wanted = logits.gather(1, torch.tensor(answer.tokens))
        found.append({"logits": wanted.tolist(), "first": logits.argmax(-1).tolist()})
    return found


def logits_of_model(model: Any) -> Callable[[list[int]], torch.Tensor]:
    """A function of token ids that returns a model's logits, float32 on the CPU: `[T, V]`, of a classifier `[1, classes]`."""

    def logits_of(ids: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids], device=model_device(model))
        mask = torch.ones_like(tokens)
        if is_classifier(model.config):
            return model(input_ids=tokens, attention_mask=mask).logits.float().cpu()
        return forward_logits(model, tokens, mask)[0].float().cpu()

    return logits_of


def conditions(model: Any, backend: str) -> dict[str, Any]:
    """What a model's answers depend on besides its weights: where all of it is alike, they are the same but for the order of sums of floats.

    Args:
        backend: what computes the model, as a loader says.
    """
    module = model if isinstance(model, nn.Module) else model.model
    # Loading rounds the tables to this; a model in memory may still have them as they are stored.
    is_rounded = module is None or head_is_quantized(module)
    environment = describe_environment()
    del environment["date"]
    return {
        "backend": backend,
        "dtype": str(model.dtype).removeprefix("torch."),
        "place": model_device(model).type,
        "head_bits": model.config.quantization_config.head_bits if is_rounded else None,
        "constants": None if module is None else _constants(module),
        **environment,
    }


def _constants(module: nn.Module) -> str:
    """A digest of the floats in a model that no file holds, such as frequencies of positions and scales of embeddings. (Those of a model that
    was in 16 bits are rounded; one that is loaded computes them anew.)"""
    stored, digest = set(module.state_dict()), xxhash.xxh3_64()
    for name, buffer in sorted(module.named_buffers(), key=lambda each: each[0]):
        # (Tables have other names in files.)
        if buffer.is_floating_point() and name not in stored and not name.endswith((".weight", ".weight_scale")):
            digest.update(name.encode() + buffer.float().cpu().numpy().tobytes())
    return digest.hexdigest()


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
        The file; `None` for a model without a head, which answers nothing.
    """
    if model.get_output_embeddings() is None and not is_classifier(model.config):
        return None
    if model.dtype != torch.float32:
        # As `verify` computes: roundings of 16 bits tip over those to integers.
        model = to(copy.deepcopy(model), torch.float32)
    return _write(folder, model, "transformers", tokenizer)


def keep_answers(folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Keep what a packed checkpoint that was written without a model in memory answers, for [`verify`]: it is loaded once. Returns the file."""
    model, backend = LOADERS["native"](str(folder))
    return _write(folder, model, backend, tokenizer)


def carry_answers(model: str | Path, folder: str | Path) -> bool:
    """Leave what a packed model answered beside the same weights in another folder; returns whether that was known."""
    file = Path(model) / REFERENCE_FILE
    if file.is_file():
        shutil.copyfile(file, Path(folder) / REFERENCE_FILE)
    return file.is_file()


def _write(folder: str | Path, model: Any, backend: str, tokenizer: PreTrainedTokenizerBase | None) -> Path:
    file, how = Path(folder) / REFERENCE_FILE, conditions(model, backend)
    found = answers_of(model, prompts(model.config.get_text_config().vocab_size, tokenizer))
    content = {"version": 1, "conditions": how, "answers": [asdict(each) for each in found]}
    write_text(file, json.dumps(content) + "\n")
    return file


def read_reference(file: str | Path) -> Reference:
    """What [`write_reference`] wrote.

    Raises:
        ValueError: the file is damaged; names it.
    """
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        found = [Answer(**each) for each in values["answers"]]
        if not all(len(each.prompt) and len(each.tokens) for each in found) or not found:
            raise ValueError("a prompt without an answer")
        # (Older versions kept no conditions.)
        return Reference(found, dict(values.get("conditions", {})))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
