"""The terms of the loss as objects: what the trainer, the card and the figures make of them."""

import pytest
import torch
from test_trainer import batch_of

from hf_bitdistill.report.loss_labels import loss_names
from hf_bitdistill.training import TEACHER_LOSS_WEIGHTS, TERMS, LossTerm
from hf_bitdistill.training.losses.terms import TermSums
from hf_bitdistill.training.losses.terms.hidden import counterpart


def test_what_there_is():
    assert [term.name for term in TERMS] == ["ce", "logits", "attention", "hidden", "router"]
    assert TEACHER_LOSS_WEIGHTS == ("logits_loss_weight", "attention_loss_weight", "hidden_loss_weight")
    names = loss_names()
    assert list(names) == ["loss", *(f"loss_{term.name}" for term in TERMS)] and names["loss_ce"] == "cross entropy"


def test_a_term_of_ones_own(make_model, make_trainer, lm_rows, monkeypatch, tmp_path):
    """One class is all there is to it: weight, division, logs, evaluation and card come with the trainer."""

    class Norm(LossTerm):
        name = "norm"
        label = "squared logits"
        order = 50
        weight_option = "warmup_steps"  # any option that is a number
        settings = ("warmup_steps",)

        def sums(self, forwards):
            chosen = forwards.logits[forwards.targets != -100]
            return TermSums(chosen.square().mean(-1).sum(), "labels")

        def facts(self):
            return [("norm", "of logits")]

    monkeypatch.setattr("hf_bitdistill.training.trainer.TERMS", (*TERMS, Norm))
    student = make_model(0).eval()
    options = {"attention_loss_weight": 0, "logits_loss_weight": 0, "logging_steps": 1, "max_steps": 2}
    trainer = make_trainer(student, None, lm_rows, warmup_steps=3, gradient_accumulation_steps=2, **options)
    loss = trainer.compute_loss(student, batch_of(trainer, lm_rows[:3]))
    squares, nll = [], []
    for row in lm_rows[:3]:
        logits = student(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        for place, label in enumerate(row["labels"][1:]):
            if label != -100:
                squares.append(logits[place].square().mean())
                nll.append(-logits[place].log_softmax(-1)[label])
    expected = torch.stack(nll).mean() + 3 * torch.stack(squares).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    trainer.train()
    for record in (record for record in trainer.state.log_history if "loss_ce" in record):
        assert record["loss"] == pytest.approx(record["loss_ce"] + 3 * record["loss_norm"], abs=2e-3)
    assert trainer.evaluate(lm_rows)["eval_loss_norm"] > 0
    trainer.create_model_card()
    assert "| norm | of logits |" in (tmp_path / "run" / "README.md").read_text()


def test_counts_are_the_trainers_own(make_model, make_trainer, lm_rows):
    """What `Trainer` hands on is a plain number of labels; the counts of an accumulated batch hold within its steps alone."""
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "attention_loss_weight": 0}
    trainer = make_trainer(make_model(0), make_model(1), lm_rows, **options)
    trainer.current_gradient_accumulation_steps = 2
    batches, labels = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    own = [(batch["labels"][:, 1:] != -100).sum() for batch in batches]
    assert labels.ndim == 0 and labels == sum(own) and own[0] != own[1]
    for batch, count in zip(batches, own, strict=True):
        step = trainer.training_step(trainer.model, batch, labels)
        alone = trainer.compute_loss(trainer.model, batch, num_items_in_batch=labels)
        torch.testing.assert_close(step, alone.detach() * count / labels)


@pytest.mark.parametrize(
    ("depth", "teacher_depth", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (2, 4, [1, 3]),
        (4, 12, [1, 4, 7, 11]),
        (4, 2, [0, 0, 0, 1]),
        (1, 3, [2]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_only_last_layers_are_compared_behind_the_final_norm(depth, teacher_depth, expected):
    assert [counterpart(layer, depth, teacher_depth) for layer in range(depth)] == expected
