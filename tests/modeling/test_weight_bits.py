"""Checkpoints with five ternary weights in a byte: the same model as with four, in every loader, in files that are smaller by a fifth."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import random_tokens
from hf_bitdistill import BitNetConfig, pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.export import export_transformers
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.modeling.sizes import bytes_by_kind
from hf_bitdistill.nn import TernaryLinear
from hf_bitdistill.verify import save_packed, verify
from optimum.bitnet import BitNetModelForCausalLM
from optimum.bitnet.export import export
from students import edit_quantization, make_student, open_student, stored_tensors


LOADERS = pytest.mark.parametrize("loader", [AutoModelForCausalLM, BitNetModelForCausalLM])
# Scales of every kind; odd widths; experts; a head of another name in public checkpoints; biases; tables of 8 bits.
STUDENTS = [
    ("llama", {"weight_granularity": "row"}, {"intermediate_size": 97, "attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"weight_granularity": "group", "group_size": 64, "sub_norm": "all"}, {"intermediate_size": 131}),
    ("mixtral", {}, {}),
    ("gpt_neox", {"sub_norm": "none"}, {}),
]


@torch.no_grad()
def logits(model):
    return model(random_tokens()).logits


def rewrite(folder, tensors):
    """Without digests, which would find all that a test changes."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("model_type", "options", "sizes"), STUDENTS)
def test_the_same_model_in_fewer_bytes(model_type, options, sizes, tmp_path):
    student = make_student(model_type, options=options, **sizes)
    two, dense = (pack(student, weight_bits=bits, table_bits=8) for bits in (2, 1.6))
    two.save_pretrained(tmp_path / "two")
    dense.save_pretrained(tmp_path / "dense")
    expected = logits(two)
    assert torch.equal(logits(dense), expected)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(logits(model), expected)
    # In memory it is what the other is; in files nothing but the ternary weights differs.
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in two.state_dict().items())
    ternary = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, TernaryLinear)}
    files = {name: stored_tensors(tmp_path / name) for name in ("two", "dense")}
    for name, tensor in files["two"].items():
        if files["dense"][name].shape != tensor.shape:
            ternary.remove(name)
        else:
            assert torch.equal(files["dense"][name], tensor), name
    assert not ternary
    # Saved again, whatever the loader, it is the same file.
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    AutoModelForCausalLM.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "one_file")
    names = ["one_file"]
    if model_type != "gpt_neox":
        natives = [BitNetModelForCausalLM.from_pretrained(tmp_path / name) for name in ("two", "dense")]
        assert torch.equal(logits(natives[0]), logits(natives[1]))
        natives[1].save_pretrained(tmp_path / "native")
        names.append("native")
    for name in names:
        again = stored_tensors(tmp_path / name)
        assert again.keys() == files["dense"].keys()
        assert all(torch.equal(again[key], files["dense"][key]) for key in again)
        assert AutoConfig.from_pretrained(tmp_path / name).quantization_config["weight_bits"] == 1.6


def test_linear_weights_take_ten_times_less_than_in_16_bits(tmp_path):
    # SmolLM2-135M's widths: no multiples of five.
    student = make_student(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    floats = sum(2 * p.numel() for name, p in student.named_parameters() if name.endswith("_proj.weight"))
    kinds = {}
    for bits in (2, 1.6):
        save_packed(pack(student, weight_bits=bits), tmp_path / str(bits), None)
        kinds[bits] = bytes_by_kind(tmp_path / str(bits))
    codes = kinds[1.6].kinds["ternary codes"]
    assert floats / codes == pytest.approx(10.0, rel=1e-4)
    assert (kinds[1.6].weight_bits, kinds[2].weight_bits) == (1.6, 2.0)
    assert kinds[1.6].original == pytest.approx(kinds[2].original, rel=1e-4)
    assert kinds[1.6].ternary_share == pytest.approx(kinds[2].ternary_share, rel=1e-4)
    assert "10.00 times as large" in kinds[1.6].markdown()


def test_five_in_a_byte_are_the_default_and_two_bits_leave_no_word_of_it(tmp_path):
    pack(make_student(), weight_bits=2).save_pretrained(tmp_path / "two")
    pack(make_student()).save_pretrained(tmp_path / "dense")
    two, dense = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("two", "dense"))
    assert "weight_bits" not in two["quantization_config"] and dense["quantization_config"]["weight_bits"] == 1.6
    with pytest.raises(ValueError, match=r"weight_bits=1.58 .*\(2, 1.6\)"):
        pack(make_student(), weight_bits=1.58)
    with pytest.raises(ValueError, match=r"weight_bits=3 "):
        BitNetConfig(weight_bits=3)


@LOADERS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.index_fill_(0, torch.tensor([3]), 255 - 18), "q_proj.weight' holds the invalid code 3"),
        (lambda t: t[:-1].clone(), r"q_proj.weight' has shape \[\d+\], expected \[\d+\]"),
        (lambda t: t.to(torch.int8), "q_proj.weight' is I8, expected U8"),
        (lambda t: torch.full_like(t, 128), "q_proj.weight' is constant: every weight is 0"),
    ],
)
def test_damage_is_refused_with_file_and_tensor(loader, change, message, tmp_path):
    pack(make_student(), weight_bits=1.6).save_pretrained(tmp_path)
    tensors, name = stored_tensors(tmp_path), "model.layers.1.self_attn.q_proj.weight"
    rewrite(tmp_path, tensors | {name: change(tensors[name])})
    with pytest.raises(CheckpointError, match=rf"model.safetensors: tensor 'model.layers.1.self_attn.{message}"):
        loader.from_pretrained(tmp_path)
    if "code 3" in message:
        assert "not -1, 0 or 1" in verify(tmp_path, answers=False).problems()[0]


@LOADERS
def test_what_the_config_says_must_be_what_was_saved(loader, tmp_path):
    for bits, other in ((2, 1.6), (1.6, 2)):
        folder = tmp_path / str(bits)
        pack(make_student(), weight_bits=bits).save_pretrained(folder)
        edit_quantization(folder, weight_bits=other)
        with pytest.raises(CheckpointError, match=r"q_proj.weight.* has shape|saved with weight_bits"):
            loader.from_pretrained(folder)


def test_a_state_dict_in_memory_and_plain_weights_in_a_file_are_accepted(tmp_path):
    packed = pack(make_student(), weight_bits=1.6)
    packed.save_pretrained(tmp_path)
    expected = logits(packed)
    plain = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    model = type(packed).from_pretrained(None, config=AutoConfig.from_pretrained(tmp_path), state_dict=plain)
    assert torch.equal(logits(model), expected)
    rewrite(tmp_path, plain)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    assert torch.equal(
        open_student(tmp_path).layer("model.layers.0.mlp.up_proj").weight, plain["model.layers.0.mlp.up_proj.weight"]
    )


def test_layers_on_the_disk(tmp_path):
    packed = pack(make_student(), weight_bits=1.6)
    packed.save_pretrained(tmp_path)
    places = dict.fromkeys(
        ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu"
    )
    options = {"device_map": {**places, "model.layers.1": "disk"}, "offload_folder": tmp_path / "offload"}
    for buffers in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, offload_buffers=buffers, **options)
        assert torch.equal(logits(model), logits(packed))


def test_exports_are_those_of_two_bits(tmp_path):
    student = make_student("bitnet", options={"sub_norm": "output"}, hidden_size=64, intermediate_size=128)
    for bits in (2, 1.6):
        pack(student, weight_bits=bits).save_pretrained(tmp_path / str(bits))
        export_transformers(tmp_path / str(bits), tmp_path / f"stock{bits}")
        export_transformers(tmp_path / str(bits), tmp_path / f"floats{bits}", dense=True)
    for name in ("stock", "floats"):
        two, dense = stored_tensors(tmp_path / f"{name}2"), stored_tensors(tmp_path / f"{name}1.6")
        assert two.keys() == dense.keys() and all(torch.equal(two[key], dense[key]) for key in two)


def test_the_native_export_writes_either_form_from_either(tmp_path):
    pack(make_student(), weight_bits=2).save_pretrained(tmp_path / "two")
    export(str(tmp_path / "two"), tmp_path / "dense", weight_bits=1.6)
    export(str(tmp_path / "dense"), tmp_path / "same")
    export(str(tmp_path / "dense"), tmp_path / "back", weight_bits=2)
    two, dense, same, back = (stored_tensors(tmp_path / name) for name in ("two", "dense", "same", "back"))
    assert all(torch.equal(two[name], back[name]) for name in two)
    assert all(torch.equal(dense[name], same[name]) for name in dense)
    assert dense["model.layers.0.mlp.up_proj.weight"].ndim == 1
    assert verify(tmp_path / "dense", answers=False).passed
    with pytest.raises(ValueError, match=r"weight_bits=8"):
        export(str(tmp_path / "two"), tmp_path / "none", weight_bits=8)


def test_dequantized_and_verified_as_any_other(tmp_path):
    student = make_student(options={"sub_norm": "none", "weight_granularity": "row"})
    two, dense = (pack(student, weight_bits=bits) for bits in (2, 1.6))
    save_packed(dense, tmp_path / "packed", None)
    found = verify(tmp_path / "packed", answers=False)
    assert found.passed, found.problems()
    layer = next(layer for layer in found.layers if layer.name.endswith("0.self_attn.q_proj.weight"))
    assert (layer.rows, layer.columns) == (48, 48)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(reloaded.dequantize()), logits(two.dequantize()))
    reloaded.save_pretrained(tmp_path / "floats")
    assert stored_tensors(tmp_path / "floats")["model.layers.0.mlp.up_proj.weight"].ndim == 2


def test_the_command(tmp_path, capsys, tiny_tokenizer):
    make_student(vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    assert main(["pack", str(tmp_path / "student"), str(tmp_path / "packed"), "--weight_bits", "1.6"]) == 0
    assert "times as large" in capsys.readouterr().out
    assert AutoConfig.from_pretrained(tmp_path / "packed").quantization_config["weight_bits"] == 1.6
    assert main(["pack", str(tmp_path / "packed"), str(tmp_path / "twice")]) == 1
    assert "packed already" in capsys.readouterr().err


@pytest.mark.parametrize(("model_type", "options", "sizes"), STUDENTS[:3])
def test_five_weights_in_a_byte_in_memory_compute_the_same(model_type, options, sizes, tmp_path, monkeypatch):
    pack(make_student(model_type, options=options, hidden_size=160, **sizes)).save_pretrained(tmp_path)
    results = {}
    for said in "01":
        monkeypatch.setenv("HF_BITDISTILL_DENSE", said)
        for loader in (AutoModelForCausalLM, BitNetModelForCausalLM):
            results[said, loader] = logits(loader.from_pretrained(tmp_path))
    for loader in (AutoModelForCausalLM, BitNetModelForCausalLM):
        assert torch.equal(results["0", loader], results["1", loader])
