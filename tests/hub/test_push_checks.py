"""A packed student is verified before it is published, and after."""

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from hf_bitdistill import pack, push_to_hub
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.verify import REFERENCE_FILE, verify, write_reference
from students import make_student


@pytest.fixture
def packed(tmp_path):
    torch.manual_seed(0)
    model = pack(make_student(vocab_size=384))
    folder = tmp_path / "packed"
    model.save_pretrained(folder)
    write_reference(folder, model)
    return folder


@pytest.mark.both_loaders
def test_both_loaders_answer_before_and_after(hub, packed, capsys):
    assert main(["push", str(packed), "owner/student"]) == 0
    assert REFERENCE_FILE in hub.files("owner/student")
    found = verify("owner/student", answers=False)
    assert found.passed and [check.name for check in found.checks][:2] == ["weight files", "digests"]
    # Sound by its digests, and not what was packed.
    file = packed / "model.safetensors"
    values = load_file(file)
    values = {name: value.flip(0).contiguous() if value.ndim == 2 else value for name, value in values.items()}
    save_file(values, file, metadata={"format": "pt"})
    commits = hub.history("owner/student")
    assert main(["push", str(packed), "owner/student"]) == 1
    assert "is not published: answers, transformers: the model answers otherwise" in capsys.readouterr().err
    assert hub.history("owner/student") == commits


def test_a_damaged_one_is_not_published(hub, packed):
    file = packed / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"is not published: digests: .*is not the one that was saved"):
        push_to_hub(packed, "owner/student")
    assert "owner/student" not in hub.repositories


def test_what_is_downloaded_is_verified(hub, packed, monkeypatch, capsys):
    create = HfApi.create_commit

    def harmed(self, repo_id, operations, **options):
        for operation in operations:
            if getattr(operation, "path_in_repo", "") == "config.json":
                text = packed.joinpath("config.json").read_text().replace('"offline"', '"online"')
                operation.__init__("config.json", text.encode())
        return create(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", harmed)
    assert main(["push", str(packed), "owner/student", "--no-check-download"]) == 0
    assert main(["push", str(packed), "owner/student"]) == 1
    told = capsys.readouterr().err
    assert "is no packed student" in told and "hf-bitdistill-" not in told, (
        "of the repository, not of a temporary folder"
    )


def test_records_of_another_model_go(hub, packed):
    push_to_hub(packed, "owner/student")
    (packed / REFERENCE_FILE).unlink()
    push_to_hub(packed, "owner/student")
    assert REFERENCE_FILE not in hub.files("owner/student")
