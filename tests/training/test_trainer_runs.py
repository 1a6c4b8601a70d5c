"""Whole runs: accumulation, resuming, seeds, logging, mixed precision, checkpointing, saving. Ternary students: see
`test_ternary_runs.py`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback


class KeepGradients(TrainerCallback):
    """Gradients of every optimizer step, before it."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def training_losses(trainer, key="loss"):
    return [record[key] for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("head", ["causal_lm", "classification"])
@pytest.mark.parametrize("average_tokens", [True, False])
@pytest.mark.parametrize("hidden_loss_weight", [0.0, 3.0])
def test_accumulation_gives_the_same_gradients(
    head, average_tokens, hidden_loss_weight, make_model, make_trainer, lm_rows, class_rows
):
    classes = 3 if head == "classification" else None
    rows = class_rows if classes else lm_rows
    if not classes:  # one micro-batch of the 8 has no label at all
        rows[4] = {**rows[4], "labels": [-100] * 3}
    # Hidden states are compared between equal widths only.
    width = {} if hidden_loss_weight else {"hidden_size": 48}
    terms = ["loss", "loss_ce", "loss_logits", "loss_attention", *(["loss_hidden"] if hidden_loss_weight else [])]
    kept, losses = {}, {}
    for size in (8, 1, 2):
        callback = KeepGradients()
        trainer = make_trainer(
            make_model(0, classes),
            make_model(1, classes, num_hidden_layers=3, **width),
            rows,
            hidden_loss_weight=hidden_loss_weight,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=2,
            logging_steps=1,
            max_grad_norm=0.0,
            optim="sgd",
            average_tokens_across_devices=average_tokens,
            callbacks=[callback],
        )
        trainer.train()
        kept[size] = callback.steps
        losses[size] = trainer.state.log_history[:2]
    largest = max(grad.abs().max() for grad in kept[8][0].values())
    assert largest > 1e-2
    for size in (1, 2):
        for one, other in zip(kept[8], kept[size], strict=True):
            assert one.keys() == other.keys()
            difference = max((one[name] - other[name]).abs().max() for name in one)
            assert difference < 1e-5 * max(1.0, largest), difference
        for one, other in zip(losses[8], losses[size], strict=True):
            for key in terms:
                assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_logged_terms_add_up_to_the_loss(make_model, make_trainer, lm_rows):
    trainer = make_trainer(
        make_model(0),
        make_model(1),
        lm_rows,
        eval_dataset=lm_rows[:3],
        eval_strategy="steps",
        eval_steps=1,
        gradient_accumulation_steps=2,
        max_steps=5,
        logging_steps=2,
        ce_loss_weight=0.5,
    )
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 2
    for record in records:
        total = 0.5 * record["loss_ce"] + 10 * record["loss_logits"] + 100 * record["loss_attention"]
        assert record["loss"] == pytest.approx(total, rel=1e-4)
    evaluations = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert len(evaluations) == 5
    for record in evaluations:
        total = 0.5 * record["eval_loss_ce"] + 10 * record["eval_loss_logits"] + 100 * record["eval_loss_attention"]
        assert record["eval_loss"] == pytest.approx(total, rel=1e-4)


def test_seeds_and_resuming(make_model, make_trainer, lm_rows, tmp_path):
    options = {"max_steps": 6, "logging_steps": 1, "seed": 7, "gradient_accumulation_steps": 2}

    def run(name, resume=None, **more):
        student = make_model(0, attention_dropout=0.1)
        trainer = make_trainer(student, make_model(1), lm_rows, name=name, **options, **more)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole", save_strategy="steps", save_steps=3)
    again = run("again")
    resumed = run("resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    for key in ("loss", "loss_ce", "loss_logits", "loss_attention"):
        assert len(training_losses(whole, key)) == 6
        assert training_losses(whole, key) == training_losses(again, key)
        assert training_losses(whole, key)[3:] == training_losses(resumed, key)[3:]
    for a, b, c in zip(*(t.model.parameters() for t in (whole, again, resumed)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_bf16_and_gradient_checkpointing(options, make_model, make_trainer, lm_rows):
    losses = {}
    for name, more in (("plain", {}), ("special", options)):
        trainer = make_trainer(
            make_model(0), make_model(1), lm_rows, name=name, max_steps=3, logging_steps=1, seed=3, **more
        )
        trainer.train()
        losses[name] = training_losses(trainer)
    rel = 0.03 if "bf16" in options else 1e-6
    assert losses["special"] == pytest.approx(losses["plain"], rel=rel)
    if "bf16" in options:
        assert losses["special"] != losses["plain"]


def test_a_run_learns_from_its_teacher(make_model, make_trainer, lm_rows):
    trainer = make_trainer(
        make_model(0), make_model(1), lm_rows, max_steps=30, logging_steps=10, learning_rate=1e-2, relation_heads=4
    )
    trainer.train()
    for key in ("loss", "loss_ce", "loss_attention"):
        first, *_, last = training_losses(trainer, key)
        assert last < 0.8 * first


def test_evaluation_before_training_is_the_students_own(make_model, make_trainer, lm_rows):
    """Preparing the teacher must not make Trainer believe that the student is prepared."""
    student = make_model(0)
    trainer = make_trainer(student, make_model(1), lm_rows, eval_dataset=lm_rows, bf16=True)
    assert trainer.accelerator._models == []
    trainer.evaluate()
    assert trainer.accelerator._models == [student]


def test_saving_leaves_teacher_and_capture_out(make_model, make_trainer, lm_rows, tmp_path):
    student = make_model(0)
    trainer = make_trainer(student, make_model(1), lm_rows, max_steps=1)
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert loaded.config._attn_implementation == student.config._attn_implementation == "sdpa"
    assert loaded.state_dict().keys() == student.state_dict().keys()
    for a, b in zip(loaded.parameters(), student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_peft_student(make_model, make_trainer, lm_rows):
    from peft import LoraConfig, get_peft_model

    student = get_peft_model(make_model(0), LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    trainer = make_trainer(student, make_model(1), lm_rows, max_steps=2, logging_steps=1)
    trainer.train()
    assert len(training_losses(trainer, "loss_attention")) == 2
