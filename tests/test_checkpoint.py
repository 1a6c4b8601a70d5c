"""Damaged and wrong checkpoints: refused, with the file and the tensor in the message."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from architectures import tiny_model
from hf_bitdistill import apply_bitnet, pack
from hf_bitdistill.checkpoint import CheckpointError


LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(params=["online", "offline"])
def checkpoint(request, tmp_path):
    model = apply_bitnet(tiny_model("llama"))
    (model if request.param == "online" else pack(model)).save_pretrained(tmp_path)
    return tmp_path, request.param


@pytest.fixture
def offline(tmp_path):
    pack(apply_bitnet(tiny_model("llama"))).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def refused(folder, *fragments):
    with pytest.raises(CheckpointError) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    for fragment in ("model.safetensors", *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_truncated_file(checkpoint, keep):
    file = checkpoint[0] / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    refused(checkpoint[0], "damaged")


@pytest.mark.parametrize("name", ["weight", "rms_norm.weight"])
def test_missing_tensor(checkpoint, name):
    tensor = LAYER.replace("up_proj", "down_proj") + "." + name
    edit(checkpoint[0], lambda tensors: tensors.pop(tensor))
    refused(checkpoint[0], tensor, "missing")


def test_wrong_shape(checkpoint):
    edit(
        checkpoint[0],
        lambda tensors: tensors.update({f"{LAYER}.weight": tensors[f"{LAYER}.weight"][..., :-1].clone()}),
    )
    refused(checkpoint[0], f"{LAYER}.weight", "shape")


def test_wrong_dtype(checkpoint):
    folder, mode = checkpoint
    dtype = torch.uint8 if mode == "online" else torch.float32
    edit(folder, lambda tensors: tensors.update({f"{LAYER}.weight": tensors[f"{LAYER}.weight"].to(dtype)}))
    refused(folder, f"{LAYER}.weight", "expected")


def test_a_gathered_latent_weight_may_have_its_plain_shape(tmp_path):
    model = apply_bitnet(tiny_model("llama"))
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{LAYER}.weight": tensors[f"{LAYER}.weight"][0].clone()}))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_submodule(LAYER).weight, model.get_submodule(LAYER).weight)


def test_code_three(offline):
    edit(offline, lambda tensors: tensors[f"{LAYER}.weight"].view(-1)[7].fill_(0b00110000))
    refused(offline, f"{LAYER}.weight", "code 3")


@pytest.mark.parametrize(
    "value, problem", [(float("nan"), "not finite"), (float("-inf"), "not finite"), (0, "positive")]
)
def test_bad_scale(offline, value, problem):
    edit(offline, lambda tensors: tensors[f"{LAYER}.weight_scale"].fill_(value))
    refused(offline, f"{LAYER}.weight_scale", problem)


@pytest.mark.parametrize("byte", [0, 0b01010101])
def test_zeroed_tensor(offline, byte):
    edit(offline, lambda tensors: tensors[f"{LAYER}.weight"].fill_(byte))
    refused(offline, f"{LAYER}.weight", "constant")


def test_the_right_shard_is_named(tmp_path):
    pack(apply_bitnet(tiny_model("llama"))).save_pretrained(tmp_path, max_shard_size="20KB")
    for file in sorted(tmp_path.glob("*.safetensors")):
        tensors = load_file(file)
        if f"{LAYER}.weight" in tensors:
            tensors[f"{LAYER}.weight"].view(-1)[0] = 0b11
            save_file(tensors, file, metadata={"format": "pt"})
            with pytest.raises(CheckpointError, match=f"{file.name}.*{LAYER}"):
                AutoModelForCausalLM.from_pretrained(tmp_path)
            return
    raise AssertionError("the tensor is in no shard")
