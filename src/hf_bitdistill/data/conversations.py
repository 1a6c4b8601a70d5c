"""Conversations and prompts with completions as token ids, with a loss on what the assistant wrote alone."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from .pieces import text_encoder
from .preprocessing import IGNORE_INDEX, special_prefix


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Turns = Literal["all", "last"]

# Why a row is left out.
EMPTY = "empty"
NO_ANSWER = "no assistant turn"
TOO_LONG = "longer than max_length"
UNFAITHFUL = "changed by the chat template"


@dataclass
class Encoded:
    """Examples as token ids.

    Attributes:
        dataset: ``input_ids``, ``attention_mask`` and ``labels`` (-100 where there is no loss), unpadded.
        left_out: How many rows were left out, by reason.
    """

    dataset: Dataset
    left_out: Counter[str] = field(default_factory=Counter)


def encode_conversations(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    column: str = "messages",
    turns: Turns = "all",
) -> Encoded:
    """Token ids of conversations through the tokenizer's chat template.

    Args:
        dataset: A column of lists of messages (``role``, ``content``, and whatever the template knows, such as ``tool_calls``); a column
            ``tools`` is given to the template. A null in a record of Arrow is no value, and its key is left out, at any depth: all records
            of a column have all keys. In arguments that are written as JSON text nothing is changed.
        max_length: Longer rows are left out: a conversation that is cut has no end.
        turns: Which of the assistant's turns are learned: all, or the last. Where a template rewrites earlier turns (as those that
            remove thoughts do), it is the last alone.

    Raises:
        ValueError: The tokenizer has no chat template, a row holds no conversation or one that the template refuses (names the row, counted
            from 0), or nothing is left.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the data are conversations, and the tokenizer has no chat template: set tokenizer.chat_template"
        )
    encoder = _ChatEncoder(tokenizer, turns)
    return _collect(_with_own_keys(dataset), lambda row: encoder.encode(row[column], row.get("tools")), max_length)


def encode_completions(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Token ids of prompts and completions, with a loss on the completion alone.

    Args:
        dataset: Columns ``prompt`` and ``completion``: both strings (end-of-text follows the completion) or both lists of messages.
        max_length: Longer rows are left out.

    Raises:
        ValueError: Messages, and the tokenizer has no chat template; a row holds something else (names the row); or nothing is left.
    """
    encode = text_encoder(tokenizer)
    prefix = special_prefix(tokenizer)
    chat: _ChatEncoder | None = None

    def one(row: Mapping[str, Any]) -> tuple[list[int], list[int]] | str:
        nonlocal chat
        prompt, completion = row["prompt"], row["completion"]
        if not prompt or not completion:
            return EMPTY
        if isinstance(prompt, str) != isinstance(completion, str):
            kinds = " and ".join(type(value).__name__ for value in (prompt, completion))
            raise ValueError(
                f"prompt and completion must both be strings or both be lists of messages, they are {kinds}"
            )
        if not isinstance(prompt, str):
            if chat is None:
                if not getattr(tokenizer, "chat_template", None):
                    raise ValueError("the prompts are messages, and the tokenizer has no chat template")
                chat = _ChatEncoder(tokenizer, "all")
            return chat.encode([*prompt, *completion], row.get("tools"), first=len(prompt))
        before, whole = encode([prompt, prompt + completion])
        # Where the tokens of the prompt change when the completion follows, the two are tokenized apart.
        answer = whole[len(before) :] if whole[: len(before)] == before else encode([completion])[0]
        answer = [*answer, tokenizer.eos_token_id]
        return prefix + before + answer, [IGNORE_INDEX] * (len(prefix) + len(before)) + answer

    return _collect(_with_own_keys(dataset), one, max_length)


def _collect(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[[Mapping[str, Any]], tuple[list[int], list[int]] | str],
    max_length: int,
) -> Encoded:
    from datasets import Dataset

    columns: dict[str, list] = {"input_ids": [], "attention_mask": [], "labels": []}
    left_out: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            example = encode(row)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        if isinstance(example, str):
            left_out[example] += 1
            continue
        ids, labels = example
        if len(ids) > max_length:
            left_out[TOO_LONG] += 1
            continue
        columns["input_ids"].append(ids)
        columns["attention_mask"].append([1] * len(ids))
        columns["labels"].append(labels)
    if not columns["input_ids"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are no rows"
        raise ValueError(f"no example is left to train on: {reasons}")
    return Encoded(Dataset.from_dict(columns), left_out)


def _with_own_keys(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Rows without the keys that Arrow gives a record because another record of its column has them: a call of one tool would have the
    arguments of all others, as nulls. (Rows of no table have their own keys.)"""
    kinds = getattr(rows, "features", None) or {}
    return (
        ({name: _own_keys(value, kinds.get(name)) for name, value in row.items()} for row in rows) if kinds else rows
    )


def _own_keys(value: Any, kind: Any) -> Any:
    """A value of a column, or a part of one.

    Args:
        kind: Its feature. Only records are looked into: what else can hold a null, as JSON does, was written so.
    """
    if isinstance(kind, Mapping) and isinstance(value, Mapping):
        return {name: _own_keys(each, kind.get(name)) for name, each in value.items() if each is not None}
    of_each = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    return [_own_keys(each, of_each) for each in value] if of_each is not None and isinstance(value, list) else value


def _check_messages(messages: Any) -> None:
    """Refuses what is no conversation.

    Raises:
        ValueError: It is no list, or a message is no mapping.
    """
    wanted = "a conversation is a list of messages with role and content"
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"{wanted}, it is {reprlib.repr(messages)} ({type(messages).__name__})")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"{wanted}, and message {number} is {reprlib.repr(message)} ({type(message).__name__})")


class _ChatEncoder:
    """Renders conversations and finds the assistant's part of their tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: Turns):
        if not tokenizer.is_fast:
            raise ValueError("conversations need a fast tokenizer, which knows where in the text a token is")
        self.tokenizer, self.turns = tokenizer, turns
        self._parse = text_encoder(tokenizer, parse_special_tokens=True)

    def _render(self, messages: Sequence[Mapping], tools: Any, prompt: bool = False) -> str:
        from jinja2 import TemplateError  # (which transformers needs for any template)

        try:
            text = self.tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", list(messages)),
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
            return cast(str, text)
        except (TemplateError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def encode(
        self, messages: Sequence[Mapping] | None, tools: Any = None, first: int = 0
    ) -> tuple[list[int], list[int]] | str:
        """Token ids and labels, or why there are none.

        Args:
            first: Turns before this one are never learned.
        """
        if not messages:
            return EMPTY
        _check_messages(messages)
        # (A template asks whether there is a key, or whether it is empty.)
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        answers = [at for at, message in enumerate(messages) if message.get("role") == "assistant" and at >= first]
        if not answers:
            return NO_ANSWER
        if self.turns == "last":
            answers = answers[-1:]
        text = self._render(messages, tools)
        spans = [self._span(text, messages, at, tools) for at in answers]
        known = [span for span in spans if span is not None]
        if not known:
            return UNFAITHFUL
        ids, labels = self._label(text, known)
        return (ids, labels) if any(label != IGNORE_INDEX for label in labels) else EMPTY

    def _label(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Token ids, and labels within the spans of characters."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if not any(at < start < end for start, _ in spans for at, end in offsets):
            inside = (any(start <= at < end for start, end in spans) for at, _ in offsets)
            return ids, [token if learned else IGNORE_INDEX for token, learned in zip(ids, inside, strict=True)]
        # A token reaches from the prompt into the answer; in use the prompt is tokenized before there is an answer.
        ids, labels, done = [], [], 0
        for start, end in [*spans, (len(text), len(text))]:
            before, answer = self._parse([text[done:start], text[start:end]])
            ids += before + answer
            labels += [IGNORE_INDEX] * len(before) + answer
            done = end
        return ids, labels

    def _span(self, text: str, messages: Sequence[Mapping], at: int, tools: Any) -> tuple[int, int] | None:
        """Characters that turn `at` takes in the rendered conversation."""
        before = self._render(messages[:at], tools, prompt=True) if at else ""
        end = text if at == len(messages) - 1 else self._render(messages[: at + 1], tools)
        if not (text.startswith(before) and text.startswith(end)):
            return None
        return len(before), len(end)
