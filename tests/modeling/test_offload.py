"""Packed models that accelerate puts in several places: the same logits bit for bit, and nothing kept of what was put away."""

import gc

import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.nn import TernaryLinear


AROUND = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
FIRST = {**AROUND, "model.layers.0": "cpu", "model.layers.1": "disk"}
LAYERS = {**AROUND, "model.layers.0": "disk", "model.layers.1": "disk"}


@torch.no_grad()
def logits(model, length=11):
    return model(input_ids=random_tokens(length=length), use_cache=False).logits


def saved(path, table_bits=32, dtype=torch.float32, **options):
    pack(apply_bitnet(tiny_model("llama"), BitNetConfig(**options)), table_bits=table_bits).save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def tied_tables_can_be_on_the_disk(path):
    """Of models in full precision. (In transformers 5.20 they cannot.)"""
    plain = tiny_model("llama").eval()
    plain.save_pretrained(path)
    places = dict.fromkeys([*AROUND, "model.layers"], "disk") | {"model.norm": "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(path, device_map=places, offload_folder=path / "offload")
    try:
        return torch.equal(logits(loaded), logits(plain))
    except RuntimeError:
        return False


def ternary_layers(model):
    return [module for module in model.modules() if isinstance(module, TernaryLinear)]


@pytest.mark.parametrize("table_bits", [32, 8])
def test_one_place_for_all(tmp_path, table_bits):
    expected = logits(saved(tmp_path, table_bits))
    for device_map in ("auto", "cpu", "balanced", {"": "cpu"}):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(logits(model), expected)
        assert all(layer.weight.dtype == torch.uint8 for layer in ternary_layers(model))


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize(
    ("device_map", "options"),
    [
        (FIRST, {}),
        (LAYERS, {"table_bits": 8, "weight_granularity": "group", "group_size": 64}),
        (LAYERS, {"dtype": torch.bfloat16}),
        (dict.fromkeys([*AROUND, "model.layers.0"], "disk") | {"model.layers.1": "cpu"}, {}),
    ],
)
def test_layers_on_the_disk(tmp_path, device_map, options, buffers):
    if device_map["model.embed_tokens"] == "disk" and not tied_tables_can_be_on_the_disk(tmp_path / "plain"):
        pytest.skip("this version of transformers puts a tied table in the place of other weights on the disk")
    expected = logits(saved(tmp_path, **options))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=options.get("dtype"),
        device_map=device_map,
        offload_folder=tmp_path / "offload",
        offload_buffers=buffers,
    )
    for _ in range(2):
        assert torch.equal(logits(model), expected)
    for name, layer in model.named_modules():
        if not isinstance(layer, TernaryLinear):
            continue
        on_disk = device_map[".".join(name.split(".")[:3])] == "disk"
        assert (layer.weight.device.type == "meta") == (on_disk and buffers)
        # What is put away takes its layout with it; what stays keeps it.
        assert (layer._packed_for_kernels is None) == (on_disk and buffers)


def test_less_memory_than_the_model_needs(tmp_path):
    expected = logits(saved(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": "30KB"}, offload_folder=tmp_path / "offload"
    )
    assert model.hf_device_map["model.layers"] == "disk"
    assert torch.equal(logits(model), expected)


def test_a_table_of_few_bits_on_the_disk_is_refused(tmp_path):
    saved(tmp_path, table_bits=8)
    places = {**AROUND, "model.embed_tokens": "disk", "lm_head": "disk", "model.layers": "cpu"}
    with pytest.raises(
        NotImplementedError, match=r"'model\.embed_tokens\.weight', a table of few bits, was offloaded"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")


@torch.no_grad()
def test_a_layout_goes_with_its_weight():
    layer = pack(apply_bitnet(tiny_model("llama", num_hidden_layers=1))).model.layers[0].mlp.gate_proj
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    elsewhere = layer.weight.clone()
    layer.weight = torch.empty_like(elsewhere, device="meta")
    gc.collect()
    assert layer._packed_for_kernels is None
    layer.weight = elsewhere
    assert torch.equal(layer(x), expected)
    # A weight that goes after another took its place takes nothing along.
    first, layer.weight = layer.weight, elsewhere.clone()
    layer(x)
    del first, elsewhere
    gc.collect()
    assert layer._packed_for_kernels is not None
