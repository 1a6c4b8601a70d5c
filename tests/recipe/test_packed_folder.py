"""A run puts its student into a folder that may hold the student of an earlier run, and what a user put beside that one."""

import dataclasses

import pytest
import torch
from huggingface_hub import ModelCard

from hf_bitdistill import pack
from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement, Record
from hf_bitdistill.hub.cards import CardFacts
from hf_bitdistill.recipe.packed_folder import put_packed
from students import make_student


SCORES = {"task": "sst2", "accuracy": 0.5, "accuracy_stderr": 0.1, "n": 24}
ON_HUB = Record(SCORES, Measurement(task=get_task("sst2"), dataset="stanfordnlp/sst2"))
LOCAL = Record(SCORES, Measurement(task=get_task("sst2"), data_dir="data"))


@pytest.fixture
def models(tmp_path):
    """The folders of two packed students."""
    found = []
    for name in ("one", "two"):
        student = make_student()
        if found:
            with torch.no_grad():
                student.model.layers[0].mlp.down_proj.weight.neg_()
        pack(student, inplace=True).save_pretrained(tmp_path / name)
        found.append(tmp_path / name)
    (found[0] / ".cache").mkdir()
    return found


def put(place, model, record, speed="10"):
    """What is said."""
    facts = CardFacts(
        "out", "packed", make_student().config, record=record, speed=f"{speed} tokens/s", sentences=["Measured."]
    )
    said = []
    put_packed(place, model, record, lambda folder: dataclasses.replace(facts), said.append)
    return said


def test_what_a_user_put_there_stays(models, tmp_path):
    place = tmp_path / "out" / "packed"
    assert put(place, models[0], ON_HUB) == []
    assert (place / "model.safetensors").read_bytes() == (models[0] / "model.safetensors").read_bytes()
    assert (place / "evaluation.json").is_file() and not (place / ".cache").exists()
    assert (place / ".eval_results" / "bitdistill.yaml").is_file()
    (place / "student.gguf").write_bytes(b"GGUF")
    card = ModelCard.load(place / "README.md")
    card.data.license, card.data.tags = "mit", [*card.data.tags, "mine"]
    card.save(place / "README.md")
    # Again: the speed is another one, the words are the same but for the file that came.
    assert len(put(place, models[0], ON_HUB, "11.5")) == 1
    text = (place / "README.md").read_text()
    assert put(place, models[0], ON_HUB, "12") == [] and (place / "README.md").read_text() == text.replace(
        "11.5", "12"
    )
    found = ModelCard.load(place / "README.md")
    assert found.data.license == "mit" and "mine" in found.data.tags and "llama-cli -m student.gguf" in found.content
    assert (place / "student.gguf").read_bytes() == b"GGUF"


def test_another_student_and_a_card_of_ones_own(models, tmp_path):
    place = tmp_path / "out" / "packed"
    put(place, models[0], ON_HUB)
    (place / "student.gguf").write_bytes(b"GGUF")
    (place / "README.md").write_text("---\nlanguage: de\n---\n# My words\n")
    said = put(place, models[1], LOCAL)
    assert (place / "model.safetensors").read_bytes() == (models[1] / "model.safetensors").read_bytes()
    assert any("student.gguf" in line and "export it again" in line for line in said)
    assert any("README.previous.md" in line for line in said)
    assert (place / "README.previous.md").read_text() == "---\nlanguage: de\n---\n# My words\n"
    card = ModelCard.load(place / "README.md")
    assert card.data.language == "de" and "llama-cli" not in card.content and (place / "student.gguf").is_file()
    assert not (place / ".eval_results" / "bitdistill.yaml").exists()
    # Damaged metadata ends no run.
    (place / "README.md").write_text("---\nlanguage: [\n---\n")
    put(place, models[1], LOCAL)
    assert "language: [" in (place / "README.previous-2.md").read_text()
    assert ModelCard.load(place / "README.md").data.language is None


def test_a_failure_leaves_the_earlier_student(models, tmp_path):
    place = tmp_path / "out" / "packed"
    put(place, models[0], ON_HUB)
    before = {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()}

    def fail(folder):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        put_packed(place, models[1], LOCAL, fail, print)
    assert {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()} == before
