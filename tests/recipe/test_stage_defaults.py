"""The commands of single stages, and the trainer, do what the recipe does, where nothing is set."""

import pytest

from hf_bitdistill.cli.arguments import StudentArguments
from hf_bitdistill.cli.warm_start import WarmStartArguments
from hf_bitdistill.recipe.efforts import EFFORTS
from hf_bitdistill.recipe.train import Machine, training_arguments
from hf_bitdistill.training import DistillationConfig, PretrainingConfig
from hf_bitdistill.training.warm_start import WarmStartConfig


STANDARD = EFFORTS["standard"]
SCHEDULE = {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 0.01, "adam_beta2": 0.95}


def test_warm_start():
    config = WarmStartConfig()
    assert config.steps_per_window == STANDARD.window_steps
    assert config.stride == STANDARD.window_stride == 4
    # A smaller window moves on by itself.
    assert WarmStartConfig(window_layers=2).windows(5) == [(0, 2), (2, 4), (4, 5)]
    assert config.learning_rate == STANDARD.window_learning_rate
    assert config.start == STANDARD.window_start
    assert config.loss_unit == STANDARD.loss_unit


def test_student():
    arguments = StudentArguments()
    assert arguments.weight_granularity == STANDARD.weight_granularity == arguments.to_config().weight_granularity
    assert arguments.sub_norm == STANDARD.sub_norm
    assert arguments.calibrate_sub_norm == STANDARD.calibrate_sub_norm
    options = WarmStartArguments()
    assert (options.keep_massive_ratio, options.warm_start_tokens) == (20.0, 393_216)
    assert arguments.weight_granularity == "row"


@pytest.mark.parametrize("kind", [DistillationConfig, PretrainingConfig])
def test_schedule(kind, tmp_path):
    own = kind(str(tmp_path / "own"), report_to="none")
    recipe = training_arguments(kind, tmp_path, Machine(bf16=False), steps=300, batch=2, micro=2, rate=1e-4, seed=0)
    for config in (own, recipe):
        assert {name: getattr(config, name) for name in SCHEDULE} == SCHEDULE
        assert config.get_warmup_steps(300) == 15


def test_distillation(tmp_path):
    own = DistillationConfig(str(tmp_path), report_to="none")
    assert own.learning_rate == STANDARD.distill_learning_rates[0]
    for name in ("temperature", "logits_loss_weight", "attention_loss_weight"):
        assert getattr(own, name) == getattr(STANDARD, name), name
    # It needs a teacher of the same width, and is in the way of a long training: docs/trainer.md.
    assert own.hidden_loss_weight == 0.0


def test_continual_pre_training(tmp_path):
    own = PretrainingConfig(str(tmp_path), report_to="none")
    assert own.learning_rate == STANDARD.pretrain_learning_rate
    assert own.logits_loss_weight == STANDARD.pretrain_logits_loss_weight
    assert own.dead_zone_leak == STANDARD.dead_zone_leak
