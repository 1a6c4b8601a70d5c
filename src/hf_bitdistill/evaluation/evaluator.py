"""Measures a model on a task: accuracy by label-word likelihood or classification logits, or ROUGE of its summaries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.batch_checks import ModelLimits
from ..data.preprocessing import PromptEncoder, build_dataset, label_word_ids
from ..data.tasks import Task, get_task
from ..modeling.model_heads import Head
from .answers import predict_answers, score_answers
from .batching import (
    check_finite,
    dataset_progress,
    evaluating,
    in_order,
    longest_first,
    model_device,
    pad_batch,
    padding_id,
)
from .likelihood import label_word_scores, perplexity
from .sharing import check_alike, results_of, shows_progress, slowest


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["evaluate_task", "perplexity"]


def evaluate_task(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: str | Task,
    dataset: Dataset,
    batch_size: int = 16,
    max_length: int | None = None,
    head: Head = "causal_lm",
    *,
    use_chat_template: bool = False,
    max_new_tokens: int | None = None,
    progress: bool = True,
    return_predictions: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on a task's examples, on the device the model is on.

    Classification with a causal LM compares, for each example, the likelihoods of the label words after the prompt and predicts the
    largest (the lowest label id among equals). The likelihood of a word of several tokens is normalised over the label words, token by
    token (see :func:`.likelihood.label_word_scores`), so that it does not matter how many tokens a word has. Nothing is generated, so every
    prediction is one of the labels. With a classification head the prediction is the largest logit. Both pad on the right.

    Of a task with the metric ``token_accuracy`` or ``perplexity`` the given answers, end-of-text included, are predicted token by token,
    each given the true ones before it.

    Other texts are generated greedily (left padding) and compared by ROUGE with stemming; ROUGE-Lsum takes each line and
    each sentence within it as a sentence.

    Args:
        model: Any causal LM of transformers (or one with the same ``forward`` and ``generate``), or a sequence
            classification model. Its training mode is restored afterwards.
        tokenizer: Its tokenizer; it is not changed.
        task: A task or its name.
        dataset: Examples with ``task.columns``, as from ``load_task_dataset``.
        batch_size: Sequences per forward pass. Examples are sorted by length, so batches have little padding.
        max_length: Limit, in tokens, of prompt and answer together. None: the task's default.
        head: ``"causal_lm"`` or ``"sequence_classification"``.
        use_chat_template: Must be as in training; see ``PromptEncoder``.
        max_new_tokens: Limit of a summary, in tokens. None: the task's default.
        progress: Whether to show a progress bar.
        return_predictions: Whether to add ``"predictions"``, in the order of ``dataset``: label ids, texts, or the first choices for the
            tokens of a given answer.

    Returns:
        ``task`` (str); the metric's values (``accuracy``, ``f1``, ``matthews_correlation``, ``exact_match``, ``rouge1``, ``rouge2``,
        ``rougeL`` and ``rougeLsum``, or ``token_accuracy`` and ``perplexity``); one standard error of each (``accuracy_stderr``, ...);
        ``n`` (examples); ``chance_level``, what always giving the most frequent class, answer or token of these examples would score
        (None for ROUGE); of classes ``random_level``, what classes drawn with equal chances would be expected to (of F1 about);
        ``chance_perplexity`` of token frequencies alone; ``seconds`` (wall time of the model's work, without tokenization and metric);
        ``tokens_per_second`` (tokens read, without padding; for summarization tokens generated).

    Raises:
        ValueError: If a prompt does not fit max_length or (with its answer) the model's context, has tokens that the model has not, the
            head does not suit the task or is one for regression or several labels, the number of classes differs, a label is no class
            of the task, or the dataset is empty or lacks columns.
        FloatingPointError: If the model's scores are not finite.
    """
    from .metrics import get_metric
    from .uncertainty import standard_errors

    task = get_task(task)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    progress = shows_progress(progress)
    with dataset_progress(progress):
        built = build_dataset(
            task,
            dataset,
            tokenizer,
            max_length,
            head,
            train=task.is_predicted,
            use_chat_template=use_chat_template,
            max_new_tokens=max_new_tokens,
        )
    if task.is_predicted:
        return _predict(model, tokenizer, task, built, batch_size, return_predictions)
    metric = get_metric(task.metric)
    prompts: list[list[int]] = [list(ids) for ids in built["input_ids"]]
    words = None
    room = 0
    if task.kind == "summarization":
        room = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    elif head == "causal_lm":
        words = label_word_ids(PromptEncoder(task, tokenizer, max_length, use_chat_template))
        # A word's last token is not read.
        room = max(map(len, words)) - 1
    elif getattr(model.config, "problem_type", None) not in (None, "single_label_classification"):
        raise ValueError(
            f"the model's config has problem_type={model.config.problem_type!r}: its outputs are no classes of which one is right"
        )
    if task.kind == "classification":
        _check_classes(built["labels" if head == "sequence_classification" else "label"], task)
    ModelLimits.of({"model": model}).check_sequences(prompts, "example", room=room)
    batches = _Batches(prompts, batch_size, f"{task.name} evaluation", progress)

    started = time.perf_counter()
    with evaluating(model):
        predictions: list[Any]
        if task.kind == "summarization":
            predictions, tokens = _generate(model, tokenizer, prompts, batches, room)
        elif head == "sequence_classification":
            predictions, tokens = _classify(model, tokenizer, prompts, batches, task)
        else:
            scores, tokens = label_word_scores(model, tokenizer, prompts, words or [], batches)
            predictions = scores.argmax(dim=-1).tolist()
    seconds = slowest(model, time.perf_counter() - started)

    options: dict[str, Any] = {}
    if task.kind == "classification":
        references = list(built["labels" if head == "sequence_classification" else "label"])
    else:
        references = list(built["reference"])
        if task.metric == "rouge":
            options = {"use_stemmer": True, "split_sentences": True}
    values = metric.compute(predictions=predictions, references=references, **options)
    errors = standard_errors(task.metric, predictions, references, **options)
    result = {
        "task": task.name,
        **values,
        **{f"{name}_stderr": error for name, error in errors.items()},
        "n": len(prompts),
        **_levels(task, references),
        "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }
    if return_predictions:
        result["predictions"] = predictions
    return result


def _predict(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    built: Dataset,
    batch_size: int,
    return_predictions: bool,
) -> dict[str, Any]:
    """The scores of given answers."""
    ModelLimits.of({"model": model}).check_sequences(built["input_ids"], "example")
    started = time.perf_counter()
    predicted = predict_answers(model, tokenizer, built, batch_size)
    seconds = slowest(model, time.perf_counter() - started)
    result: dict[str, Any] = {"task": task.name, **score_answers(predicted, built["labels"])}
    result |= {"seconds": seconds, "tokens_per_second": sum(map(len, built["input_ids"])) / max(seconds, 1e-9)}
    if return_predictions:
        result["predictions"] = [choices for *_, choices in predicted]
    return result


def _levels(task: Task, references: Sequence[Any]) -> dict[str, float | None]:
    """What a model scores that does not look at the examples."""
    from .metrics import get_metric

    if task.metric == "rouge":
        return {"chance_level": None}
    counts = Counter(references)
    constant = [counts.most_common(1)[0][0]] * len(references)
    chance = get_metric(task.metric).compute(predictions=constant, references=list(references))
    levels: dict[str, float | None] = {"chance_level": chance[task.metric]}
    if task.kind == "classification":
        share = 1 / task.num_labels
        shares = [count / len(references) for count in counts.values()]
        levels["random_level"] = {
            "accuracy": share,
            "f1": sum(2 * each * share / (each + share) for each in shares) / task.num_labels,
            "matthews_correlation": 0.0,
        }[task.metric]
    return levels


def _check_classes(labels: Sequence[int], task: Task) -> None:
    """Refuse labels that no prediction can equal (hidden test sets have -1)."""
    for row, label in enumerate(labels):
        if not 0 <= label < task.num_labels:
            raise ValueError(
                f"example {row} has the label {label}, and the classes of {task.name} are 0 to {task.num_labels - 1}: the split has no "
                "labels, or belongs to another task"
            )


class _Batches:
    """Iterates over lists of row numbers, longest prompts first, with a progress bar.

    Longest first: a batch that does not fit memory fails at once, and the time left is estimated on the safe side.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], size: int, title: str, progress: bool) -> None:
        self.batches, self.count = longest_first(prompts, size), len(prompts)
        self.title, self.progress = title, progress

    def __iter__(self):
        from tqdm.auto import tqdm

        with tqdm(total=self.count, desc=self.title, unit="example", disable=not self.progress) as bar:
            for rows in self.batches:
                yield rows
                bar.update(len(rows))


def _classify(model, tokenizer, prompts, batches, task: Task) -> tuple[list[int], int]:
    device, pad_id = model_device(model), padding_id(tokenizer)
    config = model.config.get_text_config()
    configured = config.pad_token_id
    # The classification heads of transformers find a row's last token by comparing ids with config.pad_token_id.
    config.pad_token_id = pad_id

    def classify(rows: Sequence[int]) -> list[int]:
        input_ids, mask = pad_batch([prompts[row] for row in rows], pad_id, "right", device)
        logits = model(input_ids=input_ids, attention_mask=mask).logits
        if logits.shape[-1] != task.num_labels:
            raise ValueError(
                f"the model has {logits.shape[-1]} classes, task {task.name} has {task.num_labels}: "
                f"{', '.join(task.label_words)}"
            )
        check_finite(logits, "logits")
        return logits.argmax(dim=-1).tolist()

    check_alike(model, "the prompts", lambda: prompts)
    try:
        predictions = in_order(batches.batches, results_of(model, batches, classify))
    finally:
        config.pad_token_id = configured
    return predictions, sum(map(len, prompts))


def _generate(model, tokenizer, prompts, batches, max_new_tokens: int) -> tuple[list[str], int]:
    from transformers import GenerationConfig

    device, pad_id = model_device(model), padding_id(tokenizer)
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    settings = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad_id, eos_token_id=sorted(stops)
    )

    def generate(rows: Sequence[int]) -> list[tuple[str, int]]:
        input_ids, mask = pad_batch([prompts[row] for row in rows], pad_id, "left", device)
        output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=settings)
        found = []
        for ids in output[:, input_ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
            text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
            found.append((text, min(end + 1, len(ids))))
        return found

    check_alike(model, "the prompts", lambda: prompts)
    found = in_order(batches.batches, results_of(model, batches, generate))
    return [text for text, _ in found], sum(tokens for _, tokens in found)
