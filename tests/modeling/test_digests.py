"""Digests: a checkpoint that was changed or mixed up after it was saved is refused, by both loaders, with file and tensor."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, pack
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.files.weight_files import find_weight_files
from hf_bitdistill.modeling.digests import METADATA_KEY
from hf_bitdistill.runtime import Student
from students import make_student


Q, K = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
GATE, UP = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
EMBEDDING, NORM = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a student, by its mode."""
    folder = tmp_path_factory.mktemp("saved")
    student = make_student()
    student.save_pretrained(folder / "online")
    pack(student).save_pretrained(folder / "offline")
    return folder


@pytest.fixture(params=["online", "offline"])
def checkpoint(request, saved, tmp_path):
    shutil.copytree(saved / request.param, tmp_path / "model")
    return tmp_path / "model"


def edit(file, change, keep_metadata=True):
    """Change tensors as something does that knows nothing of digests."""
    with safe_open(file, "pt") as reader:
        metadata = reader.metadata() if keep_metadata else {"format": "pt"}
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=metadata)


def edit_config(folder, **values):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"].update(values)
    file.write_text(json.dumps(config))


def load_natively(folder):
    config = AutoConfig.from_pretrained(folder)
    return Student(config, find_weight_files(folder, config))


def refused(folder, *fragments):
    for load in (AutoModelForCausalLM.from_pretrained, load_natively):
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        for fragment in fragments:
            assert fragment in str(caught.value), (load, fragment)


def accepted(folder):
    load_natively(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def swap(tensors):
    tensors[GATE], tensors[UP] = tensors[UP], tensors[GATE]


def flip_bit(tensors):
    tensors[Q].view(torch.uint8).view(-1)[5] ^= 4


@pytest.mark.parametrize(
    "change, name, what",
    [
        (swap, GATE, f"but {UP!r}"),
        (flip_bit, Q, "not the one that was saved"),
        (lambda tensors: tensors[EMBEDDING].zero_(), EMBEDDING, "not the one that was saved"),
        (lambda tensors: tensors[NORM].zero_(), NORM, "not the one that was saved"),
        (lambda tensors: tensors.update({NORM: tensors[NORM].half()}), NORM, "not the one that was saved"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "extra", "not the one that was saved"),
    ],
    ids=["swapped", "flipped bit", "zeroed embedding", "zeroed norm", "another dtype", "added"],
)
def test_a_changed_tensor_is_refused(checkpoint, change, name, what):
    edit(checkpoint / "model.safetensors", change)
    refused(checkpoint, "model.safetensors", repr(name), what)


def test_a_flipped_bit_in_the_file_itself(checkpoint):
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    refused(checkpoint, "model.safetensors", "not the one that was saved")


@pytest.mark.parametrize("key", ["model", "tensors", "options"])
def test_damaged_digests_are_refused(checkpoint, key):
    file = checkpoint / "model.safetensors"
    with safe_open(file, "pt") as reader:
        metadata = reader.metadata()
    record = json.loads(metadata[METADATA_KEY])
    del record[key]
    save_file(load_file(file), file, metadata={**metadata, METADATA_KEY: json.dumps(record)})
    refused(checkpoint, "model.safetensors", METADATA_KEY)


@pytest.mark.parametrize(
    "option, value",
    [
        ("activation_bits", None),
        ("sub_norm_eps", 1e-3),
        ("quantization_mode", None),
        ("weight_granularity", "row"),
    ],
)
def test_weights_under_a_config_of_another_student(saved, tmp_path, option, value):
    folder = tmp_path / "model"
    shutil.copytree(saved / "online", folder)
    if option == "quantization_mode":  # the other mode has other tensors, and is found by these
        shutil.copy(saved / "offline" / "config.json", folder)
        refused(folder, "model.safetensors")
        return
    edit_config(folder, **{option: value})
    refused(folder, "model.safetensors", option, repr(value), "config.json")


def test_what_does_not_change_the_meaning_may_be_edited(checkpoint):
    edit_config(checkpoint, head_bits=8, group_size=64)
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "use_cache": False, "eos_token_id": 7}))
    accepted(checkpoint)


def test_a_config_that_lost_its_quantization(checkpoint):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*no quantization_config"):
        AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=BitNetConfig())


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_shards_of_two_saves_are_refused(tmp_path, mode):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, scale in zip(folders, (1, 2), strict=True):
        model = make_student()
        with torch.no_grad():
            model.model.norm.weight.mul_(scale)
        (model if mode == "online" else pack(model)).save_pretrained(folder, max_shard_size="15KB")
    first, *_, last = sorted(folders[0].glob("*.safetensors"))
    accepted(folders[0])
    shutil.copy(folders[1] / last.name, last)
    refused(folders[0], first.name, last.name, "two different saves")
    # One of them without digests.
    edit(last, lambda tensors: None, keep_metadata=False)
    refused(folders[0], last.name)
    # A tool that writes the right shard again may drop its digests.
    shutil.copy(folders[1] / last.name, last)
    edit(last, lambda tensors: None, keep_metadata=False)
    accepted(folders[1])
    edit(folders[1] / last.name, lambda tensors: None, keep_metadata=False)
    accepted(folders[1])


def test_files_without_digests_load(checkpoint):
    edit(checkpoint / "model.safetensors", swap, keep_metadata=False)
    accepted(checkpoint)


def test_digests_do_not_change_what_is_stored(tmp_path):
    student = make_student(dtype=torch.bfloat16)
    student.save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    state = student.state_dict()
    assert all(torch.equal(tensor.reshape(state[name].shape), state[name]) for name, tensor in tensors.items())
    # The same model gives the same file.
    student.save_pretrained(tmp_path / "b")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert one == other


@pytest.mark.parametrize("model_type", ["gpt_neox", "mixtral", "gpt2"])
def test_architectures_with_other_names_in_files(tmp_path, model_type):
    student = make_student(model_type)
    student.save_pretrained(tmp_path / "online", max_shard_size="50KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "online")
    state = student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    pack(student).save_pretrained(tmp_path / "offline")
    AutoModelForCausalLM.from_pretrained(tmp_path / "offline")


def test_a_full_precision_model_has_none(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitNetConfig())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_not_finite_is_not_saved(tmp_path, value, dtype):
    student = make_student(dtype=dtype)
    folder = tmp_path / "model"
    student.save_pretrained(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    parameters = dict(student.named_parameters())
    for name in (EMBEDDING, NORM, "model.layers.1.mlp.down_proj.rms_norm.weight", Q):
        kept = parameters[name].detach().clone()
        parameters[name].data.view(-1)[-1] = value
        with pytest.raises(CheckpointError, match=f"{name}.*not finite"):
            student.save_pretrained(folder)
        parameters[name].data.copy_(kept)
        if value != value and dtype == torch.float32:
            continue
        break
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    parameters[NORM].data.view(-1)[0] = torch.finfo(dtype).min  # the largest numbers are finite
    parameters[NORM].data.view(-1)[1] = torch.finfo(dtype).max
    student.save_pretrained(folder)
