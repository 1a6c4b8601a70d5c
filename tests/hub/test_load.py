"""Loading from the Hub by both loaders: where from, with what right, and what is said when it cannot be."""

import pytest
import torch
from hub_double import OTHER_TOKEN, TOKEN, Fault
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.modeling.locate import find_model
from optimum.bitnet import BitNetModelForCausalLM, BitNetModelForSequenceClassification
from students import make_student


pytestmark = pytest.mark.usefixtures("native_decoder")

# Name of the loader -> how it loads.
LOADERS = {
    "transformers": lambda *args, **options: AutoModelForCausalLM.from_pretrained(*args, **options),
    "native": lambda *args, **options: BitNetModelForCausalLM.from_pretrained(
        *args, head_bits=32, kv_dtype="float32", **options
    ),
}
every_loader = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


def layers(model):
    """By what the models here are told apart."""
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(3, 12)[None]).logits).all()
    return model.config.num_hidden_layers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Number of layers -> the files of a packed model."""
    found = {}
    for count in (1, 2, 3):
        folder = tmp_path_factory.mktemp("models") / str(count)
        pack(make_student(num_hidden_layers=count)).save_pretrained(folder)
        found[count] = {file.name: file.read_bytes() for file in folder.iterdir()}
    return found


@pytest.fixture
def repository(hub, models):
    """`owner/student`: 1 layer at the tag v1, 2 on main, 3 on dev and in a subfolder of main."""
    hub.create("owner/student")
    first = hub.put("owner/student", models[1])
    hub.repositories["owner/student"].tags["v1"] = first
    hub.put("owner/student", {f"deep/er/{name}": content for name, content in models[3].items()})
    hub.put("owner/student", models[2])
    hub.repositories["owner/student"].branches["dev"] = first
    hub.put("owner/student", models[3], "dev")
    return hub.repositories["owner/student"]


@every_loader
def test_revisions_and_subfolders(repository, load):
    assert layers(load("owner/student")) == 2
    assert [layers(load("owner/student", revision=revision)) for revision in ("v1", "dev", "main")] == [1, 3, 2]
    assert layers(load("owner/student", revision=repository.tags["v1"])) == 1
    assert layers(load("owner/student", subfolder="deep/er")) == 3


def test_a_revision_after_an_at(repository):
    assert layers(BitNetModelForCausalLM.from_pretrained("owner/student@v1")) == 1


@every_loader
def test_caches_and_offline(hub, repository, load, offline, tmp_path, models):
    cache = tmp_path / "mine"
    assert layers(load("owner/student", cache_dir=cache)) == 2
    assert list(cache.glob("models--owner--student/snapshots/*/model.safetensors"))
    assert not list((tmp_path / "hub-cache").glob("models--*/snapshots/*/model.safetensors"))
    hub.put("owner/student", models[1])
    asked = len(hub.requests)
    assert layers(load("owner/student", cache_dir=cache, local_files_only=True)) == 2
    offline()
    assert layers(load("owner/student", cache_dir=cache)) == 2
    assert len(hub.requests) == asked
    with pytest.raises(OSError):
        load("owner/student")
    with pytest.raises(OSError):
        load("owner/student", cache_dir=cache, revision="dev")


@every_loader
def test_private_and_gated(hub, models, load, monkeypatch):
    hub.create("owner/secret", private=True)
    hub.put("owner/secret", models[1])
    hub.create("owner/gate", gated=True, readers={"other"})
    hub.put("owner/gate", models[1])
    assert layers(load("owner/secret")) == 1
    monkeypatch.delenv("HF_TOKEN")
    for repo_id, tokens in {
        "owner/secret": (None, False, OTHER_TOKEN, "hf_nobody"),
        "owner/gate": (None, "hf_nobody"),
    }.items():
        for token in tokens:
            monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-{token}")
            with pytest.raises(OSError):
                load(repo_id, token=token)
    assert layers(load("owner/secret", token=TOKEN)) == 1
    assert layers(load("owner/gate", token=OTHER_TOKEN)) == 1


SAID = {
    "no such repository": (lambda hub: {}, "owner/nothing", "has no such public model, or this account may not see it"),
    "private": (lambda hub: {"token": False}, "owner/secret", "and if it is private, log in with `hf auth login`"),
    "private, of another": (lambda hub: {"token": OTHER_TOKEN}, "owner/secret", "or this account may not see it"),
    "a wrong token": (lambda hub: {"token": "hf_nobody"}, "owner/student", "the Hub does not know this token"),
    "gated": (lambda hub: {"token": OTHER_TOKEN}, "owner/gate", "is gated on the Hub: accept its terms"),
    "no such revision": (lambda hub: {"revision": "v9"}, "owner/student", "owner/student has no revision 'v9' on the Hub"),
    "no such folder": (lambda hub: {"subfolder": "nowhere"}, "owner/empty", "owner/empty has no config.json"),
    "empty": (lambda hub: {}, "owner/empty", "owner/empty has no config.json"),
    "no weights": (lambda hub: {}, "owner/bare", "owner/bare has no model.safetensors: a ternary"),
    "only in a cache": (lambda hub: {"local_files_only": True}, "owner/student", "cannot be reached (local_files_only), and its cache"),
    "fails": (lambda hub: hub.faults.append(Fault("HEAD|GET", ".", 500, times=99)) or {}, "owner/student", "cannot be reached"),
    "weights fail": (
        lambda hub: hub.faults.append(Fault("HEAD|GET", "safetensors", 503, times=99)) or {}, "owner/student",
        "its weights are not in the Hub's cache, and the Hub cannot be reached",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "repo_id", "message"), SAID.values(), ids=SAID)
def test_what_is_said(hub, repository, models, options, repo_id, message, monkeypatch):
    for name, more in (("secret", {"private": True}), ("gate", {"gated": True}), ("empty", {}), ("bare", {})):
        hub.create(f"owner/{name}", **more)
    hub.put("owner/bare", {"config.json": models[1]["config.json"]})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OSError) as error:
        BitNetModelForCausalLM.from_pretrained(repo_id, **options(hub))
    said = str(error.value)
    assert message in said and "\n" not in said and "hf_n" not in said


def test_a_command_says_it_in_one_line(hub, repository, capsys, offline, tmp_path):
    for repo_id, message in (("owner/nothing", "no such public model"), ("owner/student", "HF_HUB_OFFLINE")):
        assert main(["pack", repo_id, str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
        offline()


@every_loader
def test_a_download_that_is_cut(hub, repository, load, monkeypatch, tmp_path, models):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault("GET", "/cdn/", status=None, after=5_000, times=2))
    assert layers(load("owner/student")) == 2  # goes on where it was cut
    (blob,) = (tmp_path / "hub-cache").glob("models--owner--student/snapshots/*/model.safetensors")
    assert blob.read_bytes() == models[2]["model.safetensors"] and hub.faults[0].times == 0
    hub.faults.append(Fault("GET", "/cdn/", status=None, after=0, times=99))
    with pytest.raises(OSError):
        load("owner/student", revision="dev")
    assert not list((tmp_path / "hub-cache").rglob("*.incomplete"))
    assert len(list((tmp_path / "hub-cache").glob("models--owner--student/snapshots/*/model.safetensors"))) == 1
    hub.faults.clear()
    assert layers(load("owner/student", revision="dev")) == 3


def test_a_download_that_fails_is_one_line(hub, repository, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault("GET", "/cdn/", status=None, after=0, times=99))
    with pytest.raises(OSError, match=r"owner/student: http.* cannot be reached") as error:
        BitNetModelForCausalLM.from_pretrained("owner/student")
    assert "\n" not in str(error.value)


def test_a_damaged_config(hub, models):
    hub.create("owner/broken")
    hub.put("owner/broken", {**models[1], "config.json": b"{"})
    for load in (find_model, BitNetModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
            load("owner/broken")


def test_a_classifier(hub, tmp_path, tiny_llama_config):
    from hf_bitdistill import BitNetConfig, apply_bitnet, push_to_hub

    tiny_llama_config.num_labels = 3
    student = apply_bitnet(AutoModelForSequenceClassification.from_config(tiny_llama_config), BitNetConfig())
    student.save_pretrained(tmp_path / "student")
    push_to_hub(tmp_path / "student", "owner/classifier")
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = pack(student)(tokens).logits
    model = AutoModelForSequenceClassification.from_pretrained("owner/classifier")
    assert torch.equal(model(tokens).logits, expected)
    native = BitNetModelForSequenceClassification.from_pretrained("owner/classifier", head_bits=32, kv_dtype="float32")
    assert torch.allclose(native(tokens).logits, expected, atol=1e-4)
    assert b"AutoModelForSequenceClassification" in hub.files("owner/classifier")["README.md"]
