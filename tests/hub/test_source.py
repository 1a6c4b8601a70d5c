"""What is published of a model's folder tells nothing of the machine that it lies on."""

import json

import pytest

from hf_bitdistill import pack
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.hub.source import model_files, other_files, tokenizer_files
from students import make_student


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    folder = tmp_path / "Zoë Doe" / "packed"
    pack(make_student(vocab_size=384)).save_pretrained(folder)
    tiny_tokenizer.chat_template = "{{ messages[0].content }} /tmp/data/x"
    tiny_tokenizer.save_pretrained(folder)
    return folder


def edit(file, **values):
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **values}))


def test_settings_are_published_without_local_paths(folder, tmp_path):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        edit(folder / name, _name_or_path=str(tmp_path / "Zoë Doe" / "base"), base="org/model")
    files = model_files(folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        published, here = json.loads(files[name]), json.loads((folder / name).read_text())
        assert published == {**here, "_name_or_path": "base"}, name
    # What a program reads letter by letter stays as it is, and so does what says nothing.
    assert files["chat_template.jinja"] == folder / "chat_template.jinja"
    assert files["tokenizer.json"] == folder / "tokenizer.json" and files["model.safetensors"].is_file()
    edit(folder / "config.json", _name_or_path="org/base")
    assert model_files(folder)["config.json"] == folder / "config.json"


def test_settings_of_other_models(folder, tmp_path):
    edit(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"), key="me-me-me-me")
    files = other_files(folder, {"me-me-me-me"})
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "base", "key": "<SECRET>"}


def test_damaged_settings_are_refused(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: holds no JSON object"):
        tokenizer_files(folder)
