"""One place builds training arguments: `recipe/train.py`. All others say how they differ."""

import ast
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from hf_bitdistill import PretrainingConfig
from hf_bitdistill.recipe.train import Machine, training_arguments


ROOT = Path(__file__).resolve().parents[2]
KINDS = {"TrainingArguments", "Seq2SeqTrainingArguments", "DistillationConfig", "PretrainingConfig"}
# A trainer that is given no arguments, as in transformers.
DEFAULTS = {"src/hf_bitdistill/training/trainer.py": ["DistillationConfig"]}


def built(source: str) -> list[str]:
    """The kinds of training arguments that a module calls."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [getattr(function, "id", getattr(function, "attr", "")) for function in calls]
    return [name for name in names if name in KINDS]


def test_one_place_builds_training_arguments():
    files = [file for folder in ("src", "scripts", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix(): built(file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == DEFAULTS
    # The scan finds what it is for, and the one place is where it is said to be.
    assert built("import transformers\nx = transformers.TrainingArguments('a')\ny = DistillationConfig()") == [
        "TrainingArguments",
        "DistillationConfig",
    ]
    builder = (ROOT / "src/hf_bitdistill/recipe/train.py").read_text(encoding="utf-8")
    assert "return kind(**{**options, **more})" in builder


def test_what_differs_wins(tmp_path):
    common = {"steps": 40, "batch": 8, "micro": 4, "rate": 1e-3, "seed": 3}
    plain = training_arguments(TrainingArguments, tmp_path, Machine(bf16=False), **common)
    assert (plain.max_steps, plain.gradient_accumulation_steps, plain.learning_rate) == (40, 2, 1e-3)
    assert (plain.per_device_train_batch_size, plain.seed, plain.data_seed) == (4, 3, 3)
    assert plain.use_cpu is not torch.accelerator.is_available()
    other = training_arguments(
        PretrainingConfig,
        tmp_path,
        Machine(bf16=True),
        **common,
        weight_decay=0.5,
        logging_strategy="no",
        use_cpu=True,
    )
    assert type(other) is PretrainingConfig and other.bf16 and other.weight_decay == 0.5
    assert other.logging_strategy == "no" and plain.logging_strategy == "steps"
    with pytest.raises(ValueError, match="a batch of 6 is no multiple of a micro batch of 4"):
        training_arguments(TrainingArguments, tmp_path, Machine(bf16=False), **{**common, "batch": 6})
