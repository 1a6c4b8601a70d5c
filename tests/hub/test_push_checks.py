"""A student is verified before it is published, and after."""

import json
import re

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


@pytest.fixture
def run(packed, tmp_path):
    """The folder of a run, with both forms."""
    run = tmp_path / "run"
    run.mkdir()
    packed.rename(run / "packed")
    student = run / "stages" / "distill" / "model"
    make_student(vocab_size=384).save_pretrained(student)
    (run / "result.json").write_text(json.dumps({"paths": {"student": str(student)}}))
    return run


def flip(file, place=-1):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


def downloads(hub):
    """Paths of the files that were asked for."""
    found = (re.search(r"/resolve/[^/]+/([^?]+)", path) for _, path in hub.requests)
    return {match[1] for match in found if match}


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
    flip(packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not published: digests: .*is not the one that was saved"):
        push_to_hub(packed, "owner/student")
    assert "owner/student" not in hub.repositories


@pytest.mark.parametrize("push_format", ["online", "both"])
def test_a_damaged_trainable_one_is_not_published(hub, run, push_format):
    flip(run / "stages" / "distill" / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model is not published: digests: .*is not the one that was saved"):
        push_to_hub(run, "owner/student", push_format=push_format)
    assert "owner/student" not in hub.repositories


@pytest.mark.parametrize("push_format", ["online", "both"])
def test_the_trainable_form_is_verified_after_its_download(hub, run, push_format, monkeypatch):
    create = HfApi.create_commit

    def harmed(self, repo_id, operations, **options):
        for operation in operations:
            if operation.path_in_repo == "online/model.safetensors":
                content = bytearray((run / "stages" / "distill" / "model" / "model.safetensors").read_bytes())
                content[-1] ^= 1
                operation.__init__("online/model.safetensors", bytes(content))
        return create(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", harmed)
    with pytest.raises(
        CheckpointError, match=r"was published .* digests: owner/student/online/model.safetensors: "
    ) as error:
        push_to_hub(run, "owner/student", push_format=push_format)
    assert "hf-bitdistill-" not in str(error.value)
    push_to_hub(run, "owner/student", push_format=push_format, check_download=False)


def test_nothing_is_downloaded_but_what_is_verified(hub, run):
    """Optimizers and files for other programs may be many times as large as the student."""
    others = ("checkpoint-1/optimizer.pt", "checkpoint-1/model.safetensors", "student-q8.gguf", "online/config.json")
    hub.create("owner/student")
    hub.put("owner/student", dict.fromkeys(others, b"another file"))
    push_to_hub(run, "owner/student")
    student = {"config.json", "generation_config.json", "model.safetensors", REFERENCE_FILE}
    assert set(hub.files("owner/student")) > {*others, *student} and downloads(hub) == student
    hub.requests.clear()
    assert verify("owner/student", answers=False).passed and downloads(hub) == student
    hub.requests.clear()
    push_to_hub(run, "owner/student", push_format="online")
    # (The card that is there is read: it may be a person's.)
    assert downloads(hub) - {"README.md"} == {
        "online/config.json",
        "online/generation_config.json",
        "online/model.safetensors",
    }


def test_shards_are_downloaded(hub, tmp_path):
    pack(make_student(vocab_size=384)).save_pretrained(tmp_path / "packed", max_shard_size="20KB")
    push_to_hub(tmp_path / "packed", "owner/student")
    weights = {name for name in hub.files("owner/student") if "safetensors" in name}
    assert len(weights) > 2 and weights <= downloads(hub)


def test_a_save_that_was_killed_and_uploaded_as_it_is(hub, packed, tmp_path):
    """By another program than this: its weights are in a folder of their own."""
    config = json.loads((packed / "config.json").read_text())
    config["transformers_weights"] = "_model.tmp-1/model.safetensors"
    hub.create("owner/student")
    hub.put(
        "owner/student",
        {
            "config.json": json.dumps(config).encode(),
            "_model.tmp-1/model.safetensors": (packed / "model.safetensors").read_bytes(),
        },
    )
    assert verify("owner/student", answers=False).passed


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


def test_a_card_that_the_hub_cannot_read_is_not_published(hub, packed):
    """As the client reads cards; those that are written here pass."""
    (packed / "README.md").write_text("---\nmodel-index:\n- name: of no results\n---\na card\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push_to_hub(packed, "owner/student")
    assert len(hub.history("owner/student")) == 1


def test_settings_on_the_hub_tell_nothing_of_this_machine(hub, packed, tmp_path):
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "_name_or_path": str(tmp_path / "base")}))
    (packed / "tokenizer_config.json").write_text(json.dumps({"tokenizer_file": str(tmp_path / "tokenizer.json")}))
    push_to_hub(packed, "owner/student")
    assert json.loads(hub.files("owner/student")["config.json"]) == {**config, "_name_or_path": "base"}
    assert str(tmp_path).encode() not in hub.everything()
    (packed / "chat_template.jinja").write_text("{# hf_" + "aB3" * 12 + " #}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja holds what looks like a token"):
        push_to_hub(packed, "owner/student")


def test_records_of_another_model_go(hub, packed):
    push_to_hub(packed, "owner/student")
    (packed / REFERENCE_FILE).unlink()
    push_to_hub(packed, "owner/student")
    assert REFERENCE_FILE not in hub.files("owner/student")
