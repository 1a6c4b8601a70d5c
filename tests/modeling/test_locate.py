import os

import pytest
from huggingface_hub import errors
from transformers import LlamaConfig, TrainerState

from hf_bitdistill.modeling import locate
from hf_bitdistill.modeling.locate import find_model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with two models and a training that was not saved."""
    monkeypatch.chdir(tmp_path)
    for name in ("student-sst2", "Teacher-sst2"):
        LlamaConfig().save_pretrained(tmp_path / name)
    (tmp_path / "student-sst1-data").mkdir()
    return tmp_path


def checkpoint(folder, step, damaged=False):
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    LlamaConfig().save_pretrained(place)
    state = TrainerState(global_step=step)
    state.save_to_json(str(place / "trainer_state.json"))
    if not damaged:
        header = b"{}      "
        (place / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return place


def test_folders_and_their_likes(here):
    assert find_model("student-sst2") == "student-sst2"
    assert find_model(str(here / "student-sst2")) == str(here / "student-sst2")
    # (No connection in the tests.)
    with pytest.raises(
        FileNotFoundError, match=r"student-sst is neither a folder here nor a model on the Hub"
    ) as error:
        find_model("student-sst")
    assert str(error.value).endswith(
        "cannot be reached (HF_HUB_OFFLINE), and its cache does not have it; did you mean student-sst2?"
    )
    with pytest.raises(FileNotFoundError, match=r"did you mean Teacher-sst2\?"):
        find_model("teacher-sst2")
    with pytest.raises(
        FileNotFoundError, match=r"there is no model folder \./teacher_sst2; did you mean Teacher-sst2\?"
    ):
        find_model("./teacher_sst2")
    with pytest.raises(FileNotFoundError, match=r"does not have it$"):
        find_model("something/else")


def response(kind):
    """An answer of the Hub as its client raises it, without a client."""
    error = kind.__new__(kind)
    Exception.__init__(error, "no")
    return error


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (lambda: response(errors.RepositoryNotFoundError), FileNotFoundError, "no such public model"),
        (lambda: errors.HFValidationError("bad"), FileNotFoundError, "no such public model"),
        (lambda: response(errors.GatedRepoError), PermissionError, "gated on the Hub"),
        (lambda: response(errors.RevisionNotFoundError), FileNotFoundError, "has no revision 'v9'"),
        (lambda: errors.OfflineModeIsEnabled("off"), FileNotFoundError, "cannot be reached"),
    ],
)
def test_what_the_hub_says(here, monkeypatch, raised, expected, message):
    def download(*args, **kwargs):
        raise raised()

    monkeypatch.setattr(locate, "hf_hub_download", download)
    with pytest.raises(expected, match=message) as error:
        find_model("owner/name", revision="v9")
    assert "\n" not in str(error.value)


def test_a_repository_without_a_config_passes(here, monkeypatch):
    def download(*args, **kwargs):
        raise response(errors.RemoteEntryNotFoundError)

    monkeypatch.setattr(locate, "hf_hub_download", download)
    assert find_model("owner/name") == "owner/name"


def test_a_training_that_was_not_saved(here):
    run = here / "run"
    checkpoint(run, 10)
    newest = checkpoint(run, 20)
    checkpoint(run, 30, damaged=True)
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json") as error:
        find_model("run")
    assert f"the newest checkpoint is {os.path.relpath(newest)}" in str(error.value)
    assert "checkpoint-30: model.safetensors is missing" in str(error.value)
    assert find_model(str(newest)) == str(newest)
    alone = here / "alone"
    checkpoint(alone, 30, damaged=True)
    with pytest.raises(FileNotFoundError, match="none of its checkpoints is whole"):
        find_model(str(alone))


def test_the_native_class_says_it_too(here, native_decoder):
    from optimum.bitnet import BitNetModelForCausalLM

    with pytest.raises(
        FileNotFoundError, match=r"student-sst is neither a folder here nor .* did you mean student-sst2"
    ):
        BitNetModelForCausalLM.from_pretrained("student-sst")
    checkpoint(here / "run", 10)
    with pytest.raises(FileNotFoundError, match="the newest checkpoint is run/checkpoint-10"):
        BitNetModelForCausalLM.from_pretrained("run")
