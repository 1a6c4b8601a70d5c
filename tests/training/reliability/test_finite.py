"""Losses, gradients, teachers and students that are not finite."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from hf_bitdistill.files.training_checkpoints import list_checkpoints
from hf_bitdistill.training import DistillationConfig, PretrainingConfig
from hf_bitdistill.training.reliability.finite import StepReport, not_finite


class Poison(TrainerCallback):
    """Makes numbers not finite in the steps given (from 1 on)."""

    def __init__(self, steps, harm, mend=lambda model: None):
        self.steps, self.harm, self.mend = steps, harm, mend

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        (self.harm if state.global_step + 1 in self.steps else self.mend)(model)


def run_of(make_model, make_trainer, rows, **options):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "logging_steps": 1, **options}
    return make_trainer(make_model(0), options.pop("teacher", None) or make_model(1), rows, **options)


def poison_teacher(teacher):
    weight = teacher.model.norm.weight
    kept = weight.detach().clone()

    def harm(model):
        weight.data.fill_(math.nan)

    def mend(model):
        weight.data.copy_(kept)

    return harm, mend


def test_a_teacher_that_turns_nan_stops_the_run_and_the_good_checkpoint_stays(
    make_model, make_trainer, lm_rows, tmp_path
):
    teacher = make_model(1)
    harm, _ = poison_teacher(teacher)
    options = {"teacher": teacher, "save_total_limit": 1, "nan_patience": 2, "attention_loss_weight": 0}
    trainer = run_of(make_model, make_trainer, lm_rows, callbacks=[Poison({3, 4, 5, 6}, harm)], **options)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert "\n" not in message
    for part in ("step 4", "teacher logits", "loss_logits", "batch 1 of 1", "input_ids [2, ", "checkpoint-3"):
        assert part in message, part
    assert not_finite(trainer.model.named_parameters()) == []
    (last,) = list_checkpoints(tmp_path / "run")
    assert last.name == "checkpoint-3"  # the step left out, with the student of step 2


def test_a_single_step_is_left_out_and_told(make_model, make_trainer, lm_rows, tmp_path, caplog):
    teacher = make_model(1)
    harm, mend = poison_teacher(teacher)
    watched = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            watched[state.global_step] = [parameter.detach().clone() for parameter in model.parameters()]

    callbacks = [Poison({3}, harm, mend), Watch()]
    with caplog.at_level(logging.WARNING):
        trainer = run_of(make_model, make_trainer, lm_rows, teacher=teacher, callbacks=callbacks, logging_steps=3)
        trainer.train()
    assert "step 3: not finite" in caplog.text and "1 of nan_patience=3" in caplog.text
    assert all(torch.equal(one, other) for one, other in zip(watched[2], watched[3], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(watched[3], watched[4], strict=True))
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["nan_steps"] == 1 and "nan_steps" not in second
    # The mean of the two steps that counted, as an undisturbed run logs it.
    plain = run_of(make_model, make_trainer, lm_rows, name="plain", max_steps=2, logging_steps=2)
    plain.train()
    assert first["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-5)
    assert math.isfinite(second["loss"]) and math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_a_gradient_that_is_not_finite_under_a_finite_loss(make_model, make_trainer, lm_rows):
    def harm(model):
        model.lm_head.weight.register_hook(lambda grad: grad * math.inf)

    trainer = run_of(make_model, make_trainer, lm_rows, callbacks=[Poison({2}, harm)], nan_patience=1)
    with pytest.raises(FloatingPointError, match=r"step 2: .*: gradient; 1 batch.*none with a loss.*checkpoint-1"):
        trainer.train()


def test_a_student_that_is_not_finite_is_never_saved(make_model, make_trainer, lm_rows, tmp_path):
    trainer = run_of(make_model, make_trainer, lm_rows, max_steps=1)
    trainer.train()
    trainer.model.model.norm.weight.data[3] = math.inf
    with pytest.raises(FloatingPointError, match=r"model.norm.weight of the student is not finite.*checkpoint-1"):
        trainer.save_model()
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["checkpoint-1"]


def test_nothing_is_hidden_from_the_logs():
    assert not DistillationConfig(output_dir="x", use_cpu=True).logging_nan_inf_filter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite number"),
        ({"learning_rate": -1e-4}, "learning_rate must be not negative"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be not negative"),
        ({"adam_beta2": 1.0}, "adam_beta2 must be below 1"),
        ({"adam_epsilon": math.nan}, "adam_epsilon must be a finite number"),
        ({"num_train_epochs": math.nan}, "num_train_epochs must be a finite number"),
        ({"lr_scheduler_kwargs": {"min_lr": math.nan}}, r"lr_scheduler_kwargs\['min_lr'\] must be a finite number"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
        ({"nan_patience": 0}, "nan_patience must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant(options, message):
    for kind in (DistillationConfig, PretrainingConfig):
        with pytest.raises(ValueError, match=message):
            kind(output_dir="x", use_cpu=True, **options)


def test_overflows_that_the_gradient_scaler_deals_with_do_not_count(make_model, make_trainer, lm_rows):
    trainer = run_of(make_model, make_trainer, lm_rows, nan_patience=1)
    scale = 1024.0
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer._not_finite(trainer.model, StepReport(terms=["gradient"], count=1, is_bad=True))
    with pytest.raises(FloatingPointError, match="loss, gradient"):
        trainer._not_finite(
            trainer.model, StepReport(terms=["loss", "gradient"], count=1, is_bad=True, has_bad_terms=True)
        )
    scale = 1.0
    with pytest.raises(FloatingPointError, match=r"\): gradient"):
        trainer._not_finite(trainer.model, StepReport(terms=["gradient"], count=1, is_bad=True))
