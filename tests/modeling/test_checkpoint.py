"""Damaged and wrong checkpoints: refused, with the file and the tensor in the message."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.files.tensor_headers import CheckpointError


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


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("tie", [True, False])
def test_missing_embedding_and_head(mode, tie, tmp_path):
    model = apply_bitnet(tiny_model("llama", tie_word_embeddings=tie))
    (model if mode == "online" else pack(model)).save_pretrained(tmp_path)
    name = "model.embed_tokens.weight" if tie else "lm_head.weight"
    edit(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, name, "missing")


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


def test_a_latent_weight_may_have_its_plain_shape(tmp_path):
    model = apply_bitnet(tiny_model("llama"))
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{LAYER}.weight": tensors[f"{LAYER}.weight"][:, 0].clone()}))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_submodule(LAYER).weight, model.get_submodule(LAYER).weight)


def test_code_three(offline):
    edit(offline, lambda tensors: tensors[f"{LAYER}.weight"].view(-1)[7].fill_(237))  # (stands for no weights)
    refused(offline, f"{LAYER}.weight", "code 3")


@pytest.mark.parametrize(
    "value, problem", [(float("nan"), "not finite"), (float("-inf"), "not finite"), (0, "positive")]
)
def test_bad_scale(offline, value, problem):
    edit(offline, lambda tensors: tensors[f"{LAYER}.weight_scale"].fill_(value))
    refused(offline, f"{LAYER}.weight_scale", problem)


@pytest.mark.parametrize("byte", [0, 128])  # (all -1; all 0)
def test_zeroed_tensor(offline, byte):
    edit(offline, lambda tensors: tensors[f"{LAYER}.weight"].fill_(byte))
    refused(offline, f"{LAYER}.weight", "constant")


def test_the_right_shard_is_named(tmp_path):
    pack(apply_bitnet(tiny_model("llama"))).save_pretrained(tmp_path, max_shard_size="20KB")
    for file in sorted(tmp_path.glob("*.safetensors")):
        save_file(load_file(file), file, metadata={"format": "pt"})  # without digests
    for file in sorted(tmp_path.glob("*.safetensors")):
        tensors = load_file(file)
        if f"{LAYER}.weight" in tensors:
            tensors[f"{LAYER}.weight"].view(-1)[0] = 237  # (stands for no weights)
            save_file(tensors, file, metadata={"format": "pt"})
            with pytest.raises(CheckpointError, match=f"{file.name}.*{LAYER}"):
                AutoModelForCausalLM.from_pretrained(tmp_path)
            return
    raise AssertionError("the tensor is in no shard")


def test_every_tensor_of_a_student_must_be_there(tmp_path):
    """A bias that transformers would initialise, or leave uninitialised, in silence."""
    model = apply_bitnet(tiny_model("qwen2"))
    for name, student in (("online", model), ("offline", pack(model))):
        for tensor in ("model.layers.0.self_attn.q_proj.bias", "model.embed_tokens.weight", "model.norm.weight"):
            folder = tmp_path / f"{name}-{tensor}"
            student.save_pretrained(folder)
            edit(folder, lambda tensors, tensor=tensor: tensors.pop(tensor))
            refused(folder, tensor, "missing")


def test_a_new_classification_head_is_no_missing_tensor(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = apply_bitnet(tiny_model("llama"))
    model.save_pretrained(tmp_path / "online")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "online", num_labels=3)
    assert torch.equal(classifier.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    pack(model).save_pretrained(tmp_path / "offline")
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "offline", num_labels=3)


def test_state_dict_in_memory(tmp_path):
    for student in (apply_bitnet(tiny_model("llama")), pack(apply_bitnet(tiny_model("llama")))):
        state = student.state_dict()
        student.config.quantization_config = student.config.quantization_config.to_dict()  # as read from config.json
        loaded = LlamaForCausalLM.from_pretrained(None, config=student.config, state_dict=dict(state))
        assert torch.equal(loaded.state_dict()[f"{LAYER}.weight"], state[f"{LAYER}.weight"])
        for tensor in (f"{LAYER}.weight", LAYER.replace("up_proj", "down_proj") + ".rms_norm.weight"):
            partial = {name: value for name, value in state.items() if name != tensor}
            with pytest.raises(CheckpointError, match="missing"):
                LlamaForCausalLM.from_pretrained(None, config=student.config, state_dict=partial)


def test_a_sub_norm_without_a_place(checkpoint):
    file = checkpoint[0] / "config.json"
    file.write_text(file.read_text().replace('"sub_norm": "output"', '"sub_norm": "none"'))
    refused(checkpoint[0], "rms_norm.weight", "no place")


def test_a_damaged_full_precision_checkpoint(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)

    def refused_base(fragment):
        with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{fragment}"):
            AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitNetConfig())

    edit(tmp_path, lambda tensors: tensors.pop(f"{LAYER}.weight"))
    refused_base("missing")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused_base("damaged")
