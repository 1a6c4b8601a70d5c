"""Which files are a model's weights: what transformers loads is what the native loader loads."""

import json
import logging
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_bitdistill import pack
from hf_bitdistill.files.weight_files import find_weight_files, size_of_weights
from hf_bitdistill.runtime import Student
from students import make_student


EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One model in one file, and another in shards."""
    folder = tmp_path_factory.mktemp("saved")
    student = make_student(tie_word_embeddings=False)
    pack(student).save_pretrained(folder / "one")
    with torch.no_grad():
        student.model.embed_tokens.weight.add_(1)
    pack(student).save_pretrained(folder / "shards", max_shard_size="25KB")
    return folder


@pytest.mark.parametrize("first, second", [("one", "shards"), ("shards", "one")])
def test_an_upload_over_another_model(saved, tmp_path, caplog, first, second):
    folder = tmp_path / "model"
    shutil.copytree(saved / first, folder)
    shutil.copytree(saved / second, folder, dirs_exist_ok=True)
    stale = [file.name for file in (saved / "shards").glob("model*")]
    assert len(stale) > 2
    texts = []
    config = AutoConfig.from_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()[EMBEDDING]
        texts.append(caplog.text)
        caplog.clear()
        student = Student(config, find_weight_files(folder, config))
        texts.append(caplog.text)
    assert torch.equal(student.files.read(EMBEDDING), expected)
    for text in texts:
        assert str(folder) in text and all(name in text for name in stale)
    assert size_of_weights(folder) == (folder / "model.safetensors").stat().st_size


def test_shards_of_an_older_save_are_named(saved, tmp_path, caplog):
    folder = tmp_path / "model"
    shutil.copytree(saved / "shards", folder)
    shutil.copy(next(folder.glob("model-00001*")), folder / "model-00001-of-00077.safetensors")
    with caplog.at_level(logging.WARNING):
        AutoModelForCausalLM.from_pretrained(folder)
    assert "model-00001-of-00077.safetensors do not belong" in caplog.text and "index" not in caplog.text


@pytest.mark.parametrize("name", ["one", "shards"])
def test_nothing_is_said_of_a_clean_folder(saved, caplog, name):
    with caplog.at_level(logging.WARNING):
        AutoModelForCausalLM.from_pretrained(saved / name)
        AutoModelForCausalLM.from_pretrained(saved / name, config=AutoConfig.from_pretrained(saved / name))
    assert "do not belong" not in caplog.text


def test_a_name_in_the_config_comes_first(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / "shards", folder)
    shutil.copy(saved / "one" / "model.safetensors", folder / "mine.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformers_weights": "mine.safetensors"}))
    assert [str(folder / "mine.safetensors")] == find_weight_files(folder)
    expected = AutoModelForCausalLM.from_pretrained(saved / "one").state_dict()[EMBEDDING]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.state_dict()[EMBEDDING], expected)
    # Where it is saved, its weights have the usual name.
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()[EMBEDDING], expected)


def test_no_weights(saved, tmp_path):
    shutil.copy(saved / "one" / "config.json", tmp_path)
    with pytest.raises(OSError, match=r"no model\.safetensors"):
        find_weight_files(tmp_path)
    assert size_of_weights(tmp_path) == 0
