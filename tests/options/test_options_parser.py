"""The help of commands whose options are dataclasses."""

import dataclasses

import pytest
from transformers import TrainingArguments

from hf_bitdistill import DistillationConfig
from hf_bitdistill.cli.main import main
from hf_bitdistill.recipe import RecipeSettings


def shown(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_our_options_come_first_and_the_rest_is_named(capsys, monkeypatch):
    text = shown(capsys, monkeypatch, "distill", "--help")
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = [field.name for field in dataclasses.fields(DistillationConfig) if field.name not in theirs]
    assert all(f"--{name} " in text for name in (*ours, "task", "sub_norm", "pack_to"))
    titles = (
        "The task and its data",
        "Arguments of DistillationTrainer",
        "Training, as transformers' TrainingArguments",
    )
    assert sorted(map(text.index, titles)) == list(map(text.index, titles))
    listed = sum(f"  --{name} " in text for name in theirs)
    assert f"--help_all lists the other {len(theirs) - listed}" in text and 15 < listed < 30
    assert len(text) < 12_000 and "MISSING" not in text and "(default: None)" not in text


def test_all_of_them(capsys, monkeypatch):
    text = shown(capsys, monkeypatch, "distill", "--help_all")
    assert all(f"--{field.name} " in text for field in dataclasses.fields(TrainingArguments))


def test_what_is_enough_comes_first(capsys, monkeypatch):
    text = shown(capsys, monkeypatch, "run", "--help")
    assert all(f"--{field.name} " in text for field in dataclasses.fields(RecipeSettings))
    first = [line.split()[0] for line in text.splitlines() if line.startswith("  --")][:3]
    assert first == ["--model", "--dataset", "--output_dir"]
