"""One progress bar at a time."""

import re

import pytest
from datasets import Dataset
from transformers import ProgressCallback

from hf_bitdistill.training import DistillationConfig, DistillationTrainer
from hf_bitdistill.training.one_bar import OneBarCallback


@pytest.fixture
def trainer(tmp_path, make_model, tiny_tokenizer):
    def make(callbacks=None, **options):
        rows = Dataset.from_dict({"input_ids": [[1, 5, 6, 7]] * 6, "labels": [[1, 5, 6, 7]] * 6})
        args = DistillationConfig(
            str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=2, eval_strategy="steps", eval_steps=1,
            per_device_eval_batch_size=2, logits_loss_weight=0, attention_loss_weight=0, allow_full_precision_student=True, disable_tqdm=False, **options,
        )  # fmt: skip
        return DistillationTrainer(
            make_model(),
            None,
            args,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tiny_tokenizer,
            callbacks=callbacks,
        )

    return make


def test_an_evaluation_within_a_training_has_no_bar(trainer, monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr("hf_bitdistill.training.one_bar.time.monotonic", lambda: float(next(clock)))
    trained = trainer()
    trained.train()
    shown = capsys.readouterr().err
    # The bar of the training alone counts to 2; those of the evaluations would count to 3.
    assert re.search(r"1/2 ", shown) and "evaluating 1/3" in shown and "evaluating 3/3" in shown
    assert not re.search(r"\| [0-3]/3 \[", shown)
    trained.evaluate()
    assert re.search(r"\| 3/3 \[", capsys.readouterr().err)


def test_whose_bar_it_is(trainer):
    class Own(ProgressCallback):
        pass

    found = [type(each) for each in trainer().callback_handler.callbacks]
    assert OneBarCallback in found and ProgressCallback not in found
    found = [type(each) for each in trainer(callbacks=[Own()]).callback_handler.callbacks]
    assert Own in found and OneBarCallback in found
