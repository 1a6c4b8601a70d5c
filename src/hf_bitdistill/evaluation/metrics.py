"""Metrics of labels and of written answers as ``evaluate.Metric``s that need neither the Hub nor a download.

``evaluate.load("accuracy")`` fetches a script from the Hub; these are the same metrics as plain classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import evaluate
from datasets import Features, Value

from ..data.tasks import PREDICTED_METRICS


ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# A sentence ends at . ! or ? (with closing quotes or brackets) before white space.
_SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)\]]*)\s+")


def _check_lengths(predictions: Sequence, references: Sequence) -> None:
    if len(predictions) != len(references) or len(predictions) == 0:
        raise ValueError(
            f"needs as many predictions as references, and at least one; got {len(predictions)} and {len(references)}"
        )


class Accuracy(evaluate.Metric):
    """Share of predictions that equal their reference.

    ``compute(predictions=[int], references=[int], normalize=True)`` returns ``{"accuracy": float}`` in [0, 1], or with
    ``normalize=False`` the number of correct predictions.

    Raises:
        ValueError: If there are no predictions.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _label_info("Share of predictions that equal their reference.")

    def _compute(self, predictions, references, normalize: bool = True) -> dict[str, float]:
        _check_lengths(predictions, references)
        correct = sum(int(p) == int(r) for p, r in zip(predictions, references, strict=True))
        return {"accuracy": correct / len(predictions) if normalize else float(correct)}


class F1(evaluate.Metric):
    """F1 of each class, averaged over the classes whatever their size (macro F1), by scikit-learn.

    ``compute(predictions=[int], references=[int])`` returns ``{"f1": float}`` in [0, 1]. A class that is neither predicted nor there
    does not count.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _label_info("F1, the mean over the classes.")

    def _compute(self, predictions, references) -> dict[str, float]:
        from sklearn.metrics import f1_score

        _check_lengths(predictions, references)
        return {"f1": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


class MatthewsCorrelation(evaluate.Metric):
    """Matthews' correlation of predictions and references, by scikit-learn.

    ``compute(predictions=[int], references=[int])`` returns ``{"matthews_correlation": float}`` in [-1, 1]; 0 is chance.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _label_info("Matthews' correlation coefficient.")

    def _compute(self, predictions, references) -> dict[str, float]:
        from sklearn.metrics import matthews_corrcoef

        _check_lengths(predictions, references)
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


class ExactMatch(evaluate.Metric):
    """Share of written answers that equal their reference but for white space around them.

    ``compute(predictions=[str], references=[str])`` returns ``{"exact_match": float}`` in [0, 1].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of answers that equal their reference.",
            citation="",
            inputs_description="predictions and references: texts",
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        _check_lengths(predictions, references)
        return {"exact_match": sum(each_exact_match(predictions, references)) / len(predictions)}


def each_exact_match(predictions: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Whether each answer equals its reference but for white space around them."""
    return [p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)]


def _label_info(description: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions and references: class ids",
        features=Features({"predictions": Value("int64"), "references": Value("int64")}),
    )


class Rouge(evaluate.Metric):
    """ROUGE-1, -2, -L and -Lsum by the ``rouge_score`` library: F-measures in [0, 1], averaged over the examples.

    ``compute(predictions=[str], references=[str], rouge_types=..., use_stemmer=False, split_sentences=False)`` returns
    a float for each of ``rouge_types``. ROUGE-Lsum compares sentence by sentence and takes each line as one sentence.
    With ``split_sentences`` the lines are divided further at ``.``, ``!`` and ``?`` (a regular expression, because
    nltk's sentence splitter needs a download); the other three are not affected by it. The defaults agree with
    ``evaluate.load("rouge")`` (without its bootstrap, whose middle value differs from the mean by less than its own
    noise); published summarization results usually use the stemmer.

    Raises:
        ValueError: If there are no predictions, or a type is unknown.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE F-measures by the rouge_score library.",
            citation="",
            inputs_description="predictions and references: texts, one sentence a line",
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(
        self,
        predictions,
        references,
        rouge_types: Sequence[str] = ROUGE_TYPES,
        use_stemmer: bool = False,
        split_sentences: bool = False,
    ) -> dict[str, float]:
        _check_lengths(predictions, references)
        each = each_rouge(predictions, references, rouge_types, use_stemmer, split_sentences)
        return {name: sum(values) / len(predictions) for name, values in each.items()}


def each_rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    rouge_types: Sequence[str] = ROUGE_TYPES,
    use_stemmer: bool = False,
    split_sentences: bool = False,
) -> dict[str, list[float]]:
    """The F-measures of every example, by type; arguments as of :class:`Rouge`."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(rouge_types), use_stemmer=use_stemmer)
    each: dict[str, list[float]] = {name: [] for name in rouge_types}
    for prediction, reference in zip(predictions, references, strict=True):
        if split_sentences:
            prediction, reference = one_sentence_a_line(prediction), one_sentence_a_line(reference)
        for name, score in scorer.score(reference, prediction).items():
            each[name].append(score.fmeasure)
    return each


def one_sentence_a_line(text: str) -> str:
    """Puts a line break after every sentence end, and keeps those that are there."""
    return _SENTENCE_END.sub(r"\1\n", text.strip())


_METRICS = {
    "accuracy": Accuracy,
    "f1": F1,
    "matthews_correlation": MatthewsCorrelation,
    "exact_match": ExactMatch,
    "rouge": Rouge,
}


def get_metric(name: str) -> evaluate.Metric:
    """Builds a metric that works offline and keeps its inputs in memory.

    Args:
        name: ``"accuracy"``, ``"f1"`` (macro) or ``"matthews_correlation"`` of labels, ``"exact_match"`` or ``"rouge"`` of texts.

    Returns:
        A new ``evaluate.Metric``: call ``compute``, or ``add_batch`` and then ``compute``.

    Raises:
        ValueError: If the name is unknown, or one of a metric that compares no predictions (``"token_accuracy"``, ``"perplexity"``).
    """
    if name in PREDICTED_METRICS:
        raise ValueError(f"{name} is measured on a model (evaluate_task, answer_scores), not on predictions")
    if name not in _METRICS:
        raise ValueError(f"unknown metric {name!r}; the metrics are {', '.join(_METRICS)}")
    return _METRICS[name](keep_in_memory=True)
