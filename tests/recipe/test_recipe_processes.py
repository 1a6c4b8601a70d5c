"""What a run makes of being one of several processes, told to one; `tests/distributed` starts several."""

import dataclasses
import io
import os
from types import SimpleNamespace

import pytest
from transformers import AutoConfig, TrainerControl

from hf_bitdistill.machine import processes
from hf_bitdistill.machine.whole_models import whole_models
from hf_bitdistill.recipe import RecipeError, RecipeSettings, train
from hf_bitdistill.recipe.progress import Progress
from hf_bitdistill.recipe.run import _Run
from hf_bitdistill.recipe.run_engine import engine, shards
from hf_bitdistill.training import PretrainingConfig
from tiny_recipe import own_settings


@pytest.fixture
def four(monkeypatch):
    """As the second of four processes whose memory differs."""
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes, "gather", lambda value: [value, value / 4, value, value])
    monkeypatch.setattr(processes, "from_first", lambda make, what: make())


def test_batches(four, settings, tmp_path, monkeypatch):
    small = AutoConfig.for_model("llama", hidden_size=64, num_hidden_layers=2, vocab_size=384)
    machine = train.Machine(bf16=False)
    monkeypatch.setattr(train, "free_memory", lambda device: 2 * 8 * 100 * (130 * 2 * 64 + 4 * 384))
    # The one that has least room decides: a quarter of the eight examples that fit elsewhere.
    assert train.micro_batch(8, 100, small, machine, 0) == 2
    options = {"steps": 10, "rate": 1e-3, "seed": 0}
    arguments = train.training_arguments(PretrainingConfig, tmp_path, machine, batch=32, micro=2, **options)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 4)
    with pytest.raises(ValueError, match=r"a batch of 20 is no multiple of a micro batch of 3 in 4 process"):
        train.training_arguments(PretrainingConfig, tmp_path, machine, batch=20, micro=3, **options)
    message = r"batch_size 18 is of all processes together .* among 4: give --batch_size 16 or 20"
    with pytest.raises(RecipeError, match=message):
        _Run(dataclasses.replace(settings, batch_size=18), Progress(io.StringIO()))
    with pytest.raises(RecipeError, match=r"give --batch_size 4, or"):
        _Run(dataclasses.replace(settings, batch_size=3), Progress(io.StringIO()))


def test_one_clock(four, monkeypatch):
    """Two seconds a step, a checkpoint every minute: looked at in time, and not at every step."""
    clock, looks = [0.0], []
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(processes, "from_first", lambda make, what: looks.append(clock[0]) or make())
    save, state = train._SaveByTime(60.0), SimpleNamespace(global_step=0, max_steps=100)
    save.on_train_begin(None, state, TrainerControl())
    saved = []
    for step in range(1, 101):
        clock[0], state.global_step = 2.0 * step, step
        if save.on_step_end(None, state, TrainerControl()).should_save:
            saved.append(step)
            save.on_save(None, state, TrainerControl())
    assert saved == [30, 60, 90] and len(looks) < 15


def test_only_the_first_speaks(four):
    lines = io.StringIO()
    progress = Progress(lines)
    progress.say("one")
    progress.done("two")
    with progress.stage("three"):
        progress.show(1, 2)
    assert lines.getvalue() == ""


def test_engines(four, monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.delenv(name, raising=False)
    assert (engine(), shards()) == ("ddp", False)
    with whole_models():
        assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with whole_models():
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert (engine(), shards()) == ("deepspeed", True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engine() == "fsdp"


def test_a_program_that_is_started_is_none_of_the_launchers(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MINE", "1")
    found = processes.environment_alone()
    assert "MINE" in found and "PATH" in found
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"} & set(found)


def test_who_speaks_without_a_store(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert processes.speaks("it")
    monkeypatch.setattr(processes, "launched", lambda: 2)
    assert processes.speaks("it"), "where it cannot be found out all speak"


def test_options_are_the_efforts_numbers(tmp_path):
    settings = RecipeSettings(**own_settings("m", "d", tmp_path))
    assert settings.overrides()["window_steps"] == 4 and settings.batch_size is None
