"""Turns a task's examples into token ids: prompts, answers, truncation, padding.

Two ways to learn a task are supported (``head``):

- ``"causal_lm"``: the model continues the prompt with the label word or the summary, then end-of-text. Labels are -100
  on the prompt, so the loss is on the answer only.
- ``"sequence_classification"``: the same prompt goes through a classification head, the label is the class id. Teacher
  and student therefore read identical text whichever head they have.

When an example is longer than ``max_length``, the *document* is cut (at its end), then the other texts if the document
was not enough; never the instruction and never the answer.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..modeling.model_heads import Head, check_known_head
from .pieces import text_encoder
from .tasks import Task, get_task


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100


def check_head(head: str, task: Task) -> None:
    """Refuses an unknown head, and a classification head for a task that has no classes.

    Raises:
        ValueError: In these two cases.
    """
    check_known_head(head)
    if head == "sequence_classification" and task.kind != "classification":
        raise ValueError(f"task {task.name} is {task.kind}: it has no classes for a sequence classification head")


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Gives a tokenizer without a padding token its end-of-text token as padding, in place.

    Padding is then told from a real end-of-text by the attention mask and by labels of -100, never by its id.

    Returns:
        The same tokenizer.

    Raises:
        ValueError: If the tokenizer has neither token.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has neither a padding nor an end-of-text token; set tokenizer.pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class PromptEncoder:
    """Writes a task's prompts and answers as token ids with one tokenizer.

    Args:
        task: A task or its name.
        tokenizer: Any tokenizer with an end-of-text token.
        max_length: Limit, in tokens, of prompt and answer together. None: the task's default.
        use_chat_template: Put the prompt into the tokenizer's chat template as the user's message. The answer is then
            the assistant's message.

    Raises:
        ValueError: If a chat template is asked for and the tokenizer has none, if there is no end-of-text token, or if
            ``max_length`` is not positive.
    """

    def __init__(
        self,
        task: str | Task,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        use_chat_template: bool = False,
    ) -> None:
        self.task = get_task(task)
        self.tokenizer = tokenizer
        self.max_length = self.task.max_length if max_length is None else max_length
        self.use_chat_template = use_chat_template
        if self.max_length < 1:
            raise ValueError(f"max_length must be positive, got {max_length}")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token, so a model could not learn to stop")
        if use_chat_template and not getattr(tokenizer, "chat_template", None):
            raise ValueError("use_chat_template is set but the tokenizer has no chat template")
        # A chat template writes its own special tokens.
        self._prefix = [] if use_chat_template else special_prefix(tokenizer)

    def render(self, example: Mapping[str, str]) -> str:
        """The prompt as text, in the chat template if there is one. It ends where the answer begins."""
        prompt = self.task.format_prompt(example)
        if not self.use_chat_template:
            return prompt
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            # Templates of reasoning models would otherwise leave room for thoughts before the answer; templates that
            # do not know the variable ignore it.
            enable_thinking=False,
        )
        return cast(str, text)

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of an answer as it follows the prompt, without end-of-text.

        Outside a chat template the answer is separated from the prompt by one space, and it is tokenized together with
        the prompt's fixed end, because many tokenizers write a word after a space differently from a word at the start
        of a text.
        """
        if self.use_chat_template:
            return self._tokenize([answer])[0]
        anchor = self.task.answer_anchor
        before, whole = self._tokenize([anchor, f"{anchor} {answer}"])
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._tokenize([f" {answer}"])[0]

    def encode_prompts(self, examples: Sequence[Mapping[str, str]], room: Sequence[int]) -> list[list[int] | None]:
        """Token ids of prompts, each shortened to its room.

        Args:
            examples: Mappings with the task's text columns.
            room: Number of tokens each prompt may have.

        Returns:
            One list per example; None where even a prompt with empty texts has no room.
        """
        encoded = self._tokenize_rendered(examples)
        return [
            self._prefix + ids if len(self._prefix) + len(ids) <= limit else self._shorten(example, limit)
            for example, ids, limit in zip(examples, encoded, room, strict=True)
        ]

    def _tokenize_rendered(self, examples: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """Token ids of rendered prompts. A chat template's special tokens are tokens; their names in an example are text."""
        rendered = [self.render(example) for example in examples]
        if not self.use_chat_template:
            return self._tokenize(rendered)
        parse = text_encoder(self.tokenizer, parse_special_tokens=True)
        encoded = parse(rendered)
        for row, (example, text) in enumerate(zip(examples, rendered, strict=True)):
            prompt = self.task.format_prompt(example)
            if any(name in prompt for name in self.tokenizer.all_special_tokens):
                # (Templates often trim what they are given.)
                before, found, after = text.partition(prompt if prompt in text else prompt.strip())
                if not found:
                    raise ValueError(
                        "the chat template changes a text that holds the name of a special token, so that it cannot be told from one: "
                        f"{prompt[:80]!r}"
                    )
                encoded[row] = [*parse([before])[0], *self._tokenize([found])[0], *parse([after])[0]]
        return encoded

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return text_encoder(self.tokenizer)(texts)

    def _shorten(self, example: Mapping[str, str], room: int) -> list[int] | None:
        # The text is cut and the whole prompt tokenized again, so that a shortened prompt has the very tokens that its
        # text has; merges across the cut make this a loop (of one or two rounds in practice).
        example = {name: example[name] for name in self.task.text_fields}
        fields = sorted(example, key=lambda name: name != self.task.document_field)
        ids = self._prefix + self._tokenize_rendered([example])[0]
        for name in fields:
            while len(ids) > room and example[name]:
                example[name] = self._cut(example[name], len(ids) - room)
                ids = self._prefix + self._tokenize_rendered([example])[0]
        return ids if len(ids) <= room else None

    def _cut(self, text: str, tokens: int) -> str:
        """Removes about ``tokens`` tokens, and at least one character, from the end of a text."""
        if self.tokenizer.is_fast:
            offsets = self.tokenizer(
                text,
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
                split_special_tokens=True,
            )["offset_mapping"]
            keep = len(offsets) - tokens
            end = offsets[keep - 1][1] if keep > 0 else 0
        else:
            total = len(self._tokenize([text])[0])
            end = len(text) * max(total - tokens, 0) // max(total, 1)
        return text[: min(end, len(text) - 1)].rstrip()


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text (none it puts after: the answer follows)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def label_word_ids(encoder: PromptEncoder) -> list[list[int]]:
    """Token ids of each label word as it follows the prompt, in the order of the label ids.

    If one word's tokens are the beginning of another's (so that only what follows tells the two apart) every word is extended by
    end-of-text.

    Raises:
        ValueError: If the task has no label words, or the tokenizer cannot tell them apart.
    """
    task = encoder.task
    if not task.label_words:
        raise ValueError(f"task {task.name} has no label words")
    words = [encoder.encode_answer(word) for word in task.label_words]
    if not all(words) or len({tuple(ids) for ids in words}) != len(words):
        pairs = ", ".join(f"{word!r} -> {ids}" for word, ids in zip(task.label_words, words, strict=True))
        raise ValueError(f"the tokenizer cannot tell the label words of task {task.name} apart: {pairs}")
    if any(a is not b and b[: len(a)] == a for a in words for b in words):
        words = [[*ids, encoder.tokenizer.eos_token_id] for ids in words]
    return words


def build_dataset(
    task: str | Task,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    head: Head = "causal_lm",
    train: bool = True,
    *,
    use_chat_template: bool = False,
    max_new_tokens: int | None = None,
    skip_overlong: bool = False,
    num_proc: int | None = None,
) -> Dataset:
    """Tokenizes a task's examples.

    Args:
        task: A task or its name.
        dataset: Map-style dataset with ``task.columns``, as from :func:`load_task_dataset`.
        tokenizer: The model's tokenizer.
        max_length: Limit, in tokens, of prompt and answer (and end-of-text) together. None: the task's default.
        head: ``"causal_lm"`` or ``"sequence_classification"``.
        train: True: with the answer, for a loss (also the evaluation loss of a ``Trainer``). False: prompts only, for
            :func:`hf_bitdistill.evaluation.evaluate_task`, which leaves room for the answer within ``max_length``.
        use_chat_template: See :class:`PromptEncoder`.
        max_new_tokens: Room left for a generated summary when ``train`` is False. None: the task's default.
        skip_overlong: Leave out, with one warning, examples whose answer and instruction alone exceed ``max_length``,
            instead of raising.
        num_proc: Worker processes. None: this process.

    Returns:
        A dataset of unpadded examples. Always ``input_ids`` and ``attention_mask`` (lists of int), and

        - causal LM, train: ``labels`` (list of int as long as ``input_ids``; -100 on the prompt);
        - causal LM, not train: ``label`` (int) for classification, ``reference`` (str) for summarization;
        - sequence classification: ``labels`` (int).

    Raises:
        ValueError: If columns are missing, if an answer with the instruction does not fit ``max_length`` (naming the
            row), or if nothing is left.
    """
    task = get_task(task)
    check_head(head, task)
    missing = [name for name in task.columns if name not in dataset.column_names]
    if missing:
        raise ValueError(f"task {task.name} needs the columns {missing}; the dataset has {dataset.column_names}")
    encoder = PromptEncoder(task, tokenizer, max_length, use_chat_template)
    if head == "sequence_classification":
        reserve = 0
    elif task.kind == "classification":
        reserve = max(len(ids) for ids in label_word_ids(encoder)) + 1
    else:
        reserve = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    built = dataset.map(
        _encode_batch,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "encoder": encoder,
            "head": head,
            "train": train,
            "reserve": reserve,
            "skip_overlong": skip_overlong,
        },
        num_proc=num_proc,
        desc=f"tokenizing {task.name}",
    )
    skipped = len(dataset) - len(built)
    if skipped:
        logger.warning("%s: left out %d of %d examples that do not fit max_length", task.name, skipped, len(dataset))
    if len(built) == 0:
        raise ValueError(f"task {task.name}: no example fits max_length {encoder.max_length}")
    return built


def _encode_batch(
    batch: Mapping[str, list],
    rows: list[int],
    encoder: PromptEncoder,
    head: Head,
    train: bool,
    reserve: int,
    skip_overlong: bool,
) -> dict[str, list]:
    task = encoder.task
    examples = [{name: batch[name][i] for name in task.columns} for i in range(len(rows))]
    with_answer = train and head == "causal_lm"
    answers: list[list[int]] = [[] for _ in rows]
    if with_answer:
        texts = [task.format_answer(example) for example in examples]
        known = {text: [*encoder.encode_answer(text), encoder.tokenizer.eos_token_id] for text in set(texts)}
        answers = [known[text] for text in texts]
    room = [encoder.max_length - (len(ids) if with_answer else reserve) for ids in answers]
    prompts = encoder.encode_prompts(examples, room)

    columns: dict[str, list] = {"input_ids": [], "attention_mask": []}
    target = "labels" if train or head != "causal_lm" else "label" if task.kind == "classification" else "reference"
    columns[target] = []
    for row, example, prompt, answer, limit in zip(rows, examples, prompts, answers, room, strict=True):
        if not prompt:
            if skip_overlong:
                continue
            raise ValueError(
                f"row {row}: the answer takes {encoder.max_length - limit} of max_length {encoder.max_length} tokens, "
                "which leaves no room for the instruction; raise max_length or set skip_overlong"
            )
        columns["input_ids"].append(prompt + answer)
        columns["attention_mask"].append([1] * (len(prompt) + len(answer)))
        if with_answer:
            columns["labels"].append([IGNORE_INDEX] * len(prompt) + answer)
        elif target == "reference":
            columns["reference"].append(task.format_answer(example))
        else:
            columns[target].append(int(example[task.target_field]))
    return columns


def collate(
    tokenizer: PreTrainedTokenizerBase,
    head: Head = "causal_lm",
    *,
    pad_to_multiple_of: int | None = None,
) -> Callable[[list[dict[str, Any]]], Any]:
    """The data collator for :func:`build_dataset` (``train=True``) and :func:`pack_corpus`: pads on the right.

    The tokenizer is copied, so that neither its padding side nor its padding token changes for the caller. Without a
    padding token, end-of-text pads; attention mask 0 and label -100 mark padding in either case.

    Args:
        tokenizer: The model's tokenizer.
        head: ``"causal_lm"`` (``transformers.DataCollatorForSeq2Seq``, labels padded with -100) or
            ``"sequence_classification"`` (``transformers.DataCollatorWithPadding``).
        pad_to_multiple_of: Round the batch's length up to a multiple of this many tokens.

    Returns:
        A function of a list of examples to a dict of int64 tensors: ``input_ids`` and ``attention_mask`` ``[B, T]``,
        ``labels`` ``[B, T]`` (causal LM) or ``[B]``.

    Raises:
        ValueError: If the head is unknown, or the tokenizer has neither a padding nor an end-of-text token.
    """
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    check_known_head(head)
    tokenizer = ensure_pad_token(copy.deepcopy(tokenizer))
    tokenizer.padding_side = "right"
    if head == "sequence_classification":
        return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    return DataCollatorForSeq2Seq(
        tokenizer, label_pad_token_id=IGNORE_INDEX, pad_to_multiple_of=pad_to_multiple_of, return_tensors="pt"
    )


def take_tokens(sequences: Iterable[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """The first sequences, whole, until they have ``tokens`` tokens together (all, if there are fewer).

    Args:
        sequences: Token ids, one sequence each; nothing behind the last one taken is read.
        tokens: How many are wanted.
    """
    taken, count = [], 0
    if tokens > 0:
        for sequence in sequences:
            taken.append(sequence)
            count += len(sequence)
            if count >= tokens:
                break
    return taken


def batch_for_tokens(sequences: Sequence[Sequence[int]], tokens: int, largest: int = 32) -> int:
    """Sequences a batch: the power of two, up to `largest`, whose batches come near so many tokens on average."""
    mean = sum(map(len, sequences)) / len(sequences)
    size = 1
    while size < largest and 2 * size * mean <= 1.5 * tokens:
        size *= 2
    return size


def batch_by_length(
    sequences: Sequence[Sequence[int]], batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Model inputs without labels, sequences of like lengths together, so that little is padded.

    Args:
        sequences: Token ids, one sequence each.
        batch_size: Sequences a batch.
        tokenizer: Pads, on the right.

    Returns:
        Batches in the order of their earliest sequences, so that the first ones are a sample of all lengths; sequences of one length keep
        their order. Each has ``input_ids`` ``[B, T]`` int64 and, where something is padded, ``attention_mask`` ``[B, T]``.
    """
    import torch

    by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    pad = collate(tokenizer)
    batches = []
    for group in sorted(groups, key=min):
        rows = [list(sequences[index]) for index in group]
        if len(rows[0]) == len(rows[-1]):
            batches.append({"input_ids": torch.tensor(rows)})
        else:
            batches.append(dict(pad([{"input_ids": row} for row in rows])))
    return batches
