"""`bitdistill card`: what a folder tells stands in the card, what somebody wrote there is not lost."""

import dataclasses

import pytest
from huggingface_hub import ModelCard

from hf_bitdistill.cli.main import main
from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement, Record
from hf_bitdistill.recipe.result import PACKED_ROW, RecipeResult, Row
from students import make_student


SCORES = {"task": "sst2", "accuracy": 0.5, "accuracy_stderr": 0.1, "n": 24}


@pytest.fixture
def student(tmp_path):
    """A packed one, in a folder as that of a run."""
    from hf_bitdistill import pack

    folder = tmp_path / "out" / "packed"
    pack(make_student(), inplace=True).save_pretrained(folder)
    return folder


def run_of(folder, settings, description, **more):
    """A run with a table, whose packed student is measured."""
    score = {"metric": "accuracy", "value": 0.5, "stderr": 0.1, "n": 24, "chance": 0.5, "more": {}}
    gap = {"value": 0.1, "stderr": 0.01}
    return RecipeResult(
        folder,
        settings,
        {"window_steps": 0},
        description,
        {},
        table=[Row("teacher", score), Row(PACKED_ROW, score, 1_000_000, 50.0)],
        gap={"loss": gap, "accuracy": gap, "agreement": 0.9, "n": 5},
        machine={"processor": "A CPU", "threads": 2},
        **more,
    )


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_a_folder_without_a_card(student, capsys):
    assert main(["card", str(student), "--base_model", "org/base", "--license", "mit"]) == 0
    card = card_of(student)
    assert (card.data.base_model, card.data.license) == ("org/base", "mit")
    assert "| ternary codes |" in card.content and "## Results" not in card.content and "## How" not in card.content
    assert 'from_pretrained("packed")' in card.content and str(student.parent) not in card.content
    assert str(student / "README.md") in capsys.readouterr().out


def test_what_was_set_stays_and_the_text_is_kept(student, capsys):
    text = "---\nlicense: apache-2.0\nlanguage: de\ntags:\n- mine\nbase_model: org/base\n---\n# My words\n"
    (student / "README.md").write_text(text)
    Record(SCORES, Measurement(task=get_task("sst2"), data_dir="data"), "rows", "bitdistill evaluate").write(student)
    assert main(["card", str(student), "--repo_id", "me/mine"]) == 0
    card = card_of(student)
    assert (card.data.license, card.data.language, card.data.base_model) == ("apache-2.0", "de", "org/base")
    assert (
        "mine" in card.data.tags and card.content.count("# mine") == 1 and 'from_pretrained("me/mine")' in card.content
    )
    assert "| accuracy | 50.0 ± 10.0 % |" in card.content
    assert (student / "README.previous.md").read_text() == text
    assert "README.previous.md" in capsys.readouterr().out
    # Neither is what was written since, nor does the first take its place.
    (student / "README.md").write_text("---\nlanguage: de\n---\n# Other words\n")
    assert main(["card", str(student), "--repo_id", "me/mine"]) == 0
    assert (student / "README.previous.md").read_text() == text
    assert "# Other words" in (student / "README.previous-2.md").read_text()
    (student / "README.previous.md").rename(student / "README.md")
    assert main(["card", str(student), "--repo_id", "me/mine"]) == 0
    assert (student / "README.previous.md").read_text() == text
    # Again: nothing is new.
    (student / "README.previous.md").unlink()
    assert main(["card", str(student), "--repo_id", "me/mine"]) == 0
    assert not (student / "README.previous.md").exists() and card_of(student).content == card.content


def test_the_student_of_a_run(student):
    run_of(student.parent, {"model": "org/base", "dataset": "sst2"}, "sst2: 10 to train on").write()
    record = Record(SCORES, Measurement(task=get_task("sst2"), dataset="sst2"), "rows", "bitdistill run", PACKED_ROW)
    record.write(student)
    for folder in (student.parent, student):
        assert main(["card", str(folder)]) == 0
        text = card_of(student).content
        assert "bitdistill run --model org/base --dataset sst2" in text and "| teacher |" in text and "A CPU" in text
        assert "# out" in text
        (student / "README.md").unlink()
    # Measured by somebody else: then the run's table is not this model's.
    dataclasses.replace(record, by="bitdistill evaluate").write(student)
    assert main(["card", str(student)]) == 0
    assert "A CPU" not in card_of(student).content and "| accuracy | 50.0 ± 10.0 % |" in card_of(student).content


def test_of_a_run_that_was_moved(student, tmp_path, monkeypatch):
    """Its relative paths are no ids on the Hub; where its base model was, is known."""
    (tmp_path / "BASE").mkdir()
    (tmp_path / "BASE" / "README.md").write_text("---\nlicense: mit\n---\n")
    run_of(
        student.parent,
        {"model": "BASE", "dataset": "DATA/sst2"},
        "DATA/sst2: 10 to train on",
        places={"model": str(tmp_path / "BASE"), "dataset": str(tmp_path / "DATA" / "sst2")},
    ).write()
    how = Measurement(task=get_task("sst2"), dataset="DATA/sst2", found_split="validation", local=True)
    Record(SCORES, how, "rows", "bitdistill run", PACKED_ROW).write(student)
    monkeypatch.chdir(student)
    assert main(["card", str(student)]) == 0
    card = card_of(student)
    assert (card.data.base_model, card.data.datasets, card.data.license) == (None, None, "mit")
    assert "--model BASE --dataset sst2" in card.content and "`BASE`, a local folder" in card.content
    assert card.data.eval_results[0].dataset_split == "validation"
    assert "`bitdistill evaluate packed --dataset DATA` measures the scores again" in card.content
    assert "(`sst2`, split validation)" in card.content and "DATA/sst2" not in card.content


def test_refusals_are_a_line_each(student, tmp_path, capsys):
    for argv, words in (
        ([str(tmp_path / "nowhere")], "nowhere"),
        ([str(tmp_path)], "no"),
    ):
        assert main(["card", *argv]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error
    (student / "README.md").write_text("---\nbase_model: [\n---\n")
    assert main(["card", str(student)]) == 1
    assert "metadata cannot be read" in capsys.readouterr().err
    online = tmp_path / "online"
    make_student().save_pretrained(online)
    assert main(["card", str(online)]) == 0 and "## Size" not in card_of(online).content
    assert main(["card", str(online), "--speed"]) == 1 and "not packed" in capsys.readouterr().err
