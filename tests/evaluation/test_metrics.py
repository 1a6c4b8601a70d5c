import evaluate
import pytest
from rouge_score.rouge_scorer import RougeScorer

from hf_bitdistill.evaluation import Accuracy, Rouge, get_metric
from hf_bitdistill.evaluation.uncertainty import standard_errors


def test_get_metric():
    assert isinstance(get_metric("accuracy"), Accuracy)
    assert isinstance(get_metric("rouge"), Rouge)
    assert isinstance(get_metric("rouge"), evaluate.Metric)
    with pytest.raises(
        ValueError,
        match="unknown metric 'bleu'; the metrics are accuracy, f1, matthews_correlation, exact_match, rouge",
    ):
        get_metric("bleu")


def test_accuracy():
    metric = get_metric("accuracy")
    assert metric.compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 0]) == {"accuracy": 0.5}
    assert metric.compute(predictions=[0, 1], references=[1, 1], normalize=False) == {"accuracy": 1.0}
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    metric.add(prediction=0, reference=0)
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_f1_and_matthews_by_hand():
    predictions, references = [0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 0, 2]
    each = [2 * 1 / (2 * 1 + 1 + 1), 2 * 2 / (2 * 2 + 1 + 1), 1.0]
    assert get_metric("f1").compute(predictions=predictions, references=references)["f1"] == pytest.approx(
        sum(each) / 3
    )
    # Two classes: (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)).
    value = get_metric("matthews_correlation").compute(predictions=[1, 1, 1, 0, 0], references=[1, 1, 0, 0, 1])
    assert value["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


def test_exact_match():
    value = get_metric("exact_match").compute(predictions=[" Yes\n", "no"], references=["Yes", "No"])
    assert value == {"exact_match": 0.5}


def test_standard_errors():
    predictions, references = [0, 1] * 200, [0, 0, 0, 1] * 100
    error = standard_errors("accuracy", predictions, references)["accuracy"]
    assert error == pytest.approx((0.75 * 0.25 / 399) ** 0.5)
    # Of F1 and Matthews by resampling: near the error of the accuracy here, and always the same.
    for name in ("f1", "matthews_correlation"):
        errors = [standard_errors(name, predictions, references)[name] for _ in range(2)]
        assert errors[0] == errors[1]
        assert error / 2 < errors[0] < 3 * error
    rouge = standard_errors("rouge", ["a b", "c"], ["a b", "d"])
    assert rouge["rouge1"] == pytest.approx(0.5)


def test_metrics_work_with_files_and_no_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric used the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    metric = Rouge(cache_dir=str(tmp_path))
    assert metric.compute(predictions=["a b"], references=["a b"])["rouge1"] == 1.0


def test_rouge_by_hand():
    # Reference of 6 words, prediction of 4: 3 words in common, 1 pair of neighbours, 3 in the same order.
    values = get_metric("rouge").compute(
        predictions=["the dog sat quietly"], references=["the big dog sat down today"]
    )
    f1 = 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)
    f2 = 2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5)
    assert values == pytest.approx({"rouge1": f1, "rouge2": f2, "rougeL": f1, "rougeLsum": f1})


def test_rouge_against_the_library_with_lines():
    predictions = ["the bridge is old\nnobody built it", "bread baked mornings", ""]
    references = ["nobody built it\nthe bridge is very old", "she bakes bread every morning", "no words"]
    for stem in (False, True):
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stem)
        values = get_metric("rouge").compute(predictions=predictions, references=references, use_stemmer=stem)
        for name, value in values.items():
            each = [scorer.score(r, p)[name].fmeasure for p, r in zip(predictions, references, strict=True)]
            assert value == pytest.approx(sum(each) / 3)
    # Lines are sentences for Lsum only: in another order they cost ROUGE-L but not ROUGE-Lsum.
    one = get_metric("rouge").compute(predictions=predictions[:1], references=references[:1])
    assert one["rougeLsum"] > one["rougeL"]


def test_sentences_on_one_line_can_be_split():
    prediction, reference = 'He slept. "It rained!" She left.', "She left. He slept. It rained!"
    with_lines = get_metric("rouge").compute(
        predictions=[prediction.replace(". ", ".\n").replace('!" ', '!"\n')],
        references=[reference.replace(". ", ".\n")],
    )
    split = get_metric("rouge").compute(predictions=[prediction], references=[reference], split_sentences=True)
    plain = get_metric("rouge").compute(predictions=[prediction], references=[reference])
    assert split == with_lines
    assert split["rougeLsum"] == 1.0 > plain["rougeLsum"]
    assert split["rougeL"] == plain["rougeL"]


def test_no_predictions():
    for name in ("accuracy", "f1", "matthews_correlation", "exact_match", "rouge"):
        with pytest.raises(ValueError):
            get_metric(name).compute(predictions=[], references=[])
