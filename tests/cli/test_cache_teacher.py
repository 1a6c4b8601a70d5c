"""`bitdistill cache-teacher`, and the trainings that read what it writes."""

import json

import pytest

from hf_bitdistill.cli.main import main
from hf_bitdistill.training.teacher.cache.cache_files import read_info


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "4"]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, words in (("train", ("dull", "fine")), ("validation", ("odd", "kind"))):
        rows = [{"sentence": f"a {word} film number {i} .", "label": i % 2} for i in range(8) for word in words]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "corpus.txt").write_text("The robot waters the plant near the window.\n" * 40)
    return folder


def run(*argv):
    return main([str(argument) for argument in argv])


def test_task(teacher, data, tmp_path, capsys):
    cache, student = tmp_path / "cache", tmp_path / "student"
    task = ["--task", "sst2", "--data_dir", data, "--max_train_samples", 12]
    write = ["cache-teacher", "--model_name_or_path", teacher, *task, "--output_dir", cache, "--top_k", 16]
    assert run(*write) == 0
    assert "the 16 most likely of 384 at " in capsys.readouterr().out
    info = read_info(cache)
    assert info.complete and info.examples == 12 and info.teacher == str(teacher)
    distill = ["distill", "--model_name_or_path", teacher, *task, "--teacher_cache", cache, "--output_dir", student]
    options = ["--max_steps", 2, "--logging_steps", 1, "--attention_loss_weight", 0, *QUIET]
    assert run(*distill, *options) == 0
    log = json.loads((student / "trainer_state.json").read_text())["log_history"]
    assert log[0]["loss_logits"] > 0
    card = (student / "README.md").read_text()
    assert "without a teacher" not in card and "Teacher: a model that is not named" in card
    # An evaluation loss needs the rows that it is of.
    evaluated = [*distill[:-1], tmp_path / "evaluated", *options, "--eval_strategy", "steps", "--eval_steps", 1]
    assert run(*evaluated) == 1 and "is not in the teacher's cache" in capsys.readouterr().err
    both = tmp_path / "both"
    assert run(*[both if part == cache else part for part in write], "--cache_eval_split") == 0
    assert read_info(both).examples == 12 + 16
    assert run(*[both if part == cache else part for part in evaluated]) == 0


def test_corpus(teacher, data, tmp_path, capsys):
    cache = tmp_path / "cache"
    corpus = ["--corpus", data / "corpus.txt", "--sample_by", "line", "--block_size", 32]
    assert run("cache-teacher", "--model_name_or_path", teacher, *corpus, "--output_dir", cache) == 0
    out = tmp_path / "out"
    options = ["--model_name_or_path", teacher, *corpus, "--output_dir", out, "--max_steps", 2, "--logging_steps", 1]
    assert run("pretrain", *options, "--teacher_cache", cache, *QUIET) == 0
    assert json.loads((out / "trainer_state.json").read_text())["log_history"][0]["loss_logits"] > 0
    shorter = [16 if part == 32 else tmp_path / "other" if part == out else part for part in options]
    assert run("pretrain", *shorter, "--teacher_cache", cache, *QUIET) == 1
    assert "is not in the teacher's cache" in capsys.readouterr().err


def test_what_is_missing_is_named(teacher, tmp_path, capsys):
    for message, options in {
        "--output_dir is required": ["--task", "sst2"],
        "--task or --corpus is required": ["--output_dir", tmp_path / "x"],
        "unknown option '--streaming'": ["--output_dir", tmp_path / "x", "--corpus", "y", "--streaming"],
    }.items():
        assert run("cache-teacher", "--model_name_or_path", teacher, *options) == 1
        assert message in capsys.readouterr().err
    assert run("cache-teacher", "--model_name_or_path", teacher, "--corpus", "y", "--output_dir", teacher) == 1
    assert "would be lost or mixed" in capsys.readouterr().err
