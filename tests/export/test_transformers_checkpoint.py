"""Checkpoints for transformers alone, loaded in a process that cannot import this package."""

import json
import os
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import warm
from architectures import random_tokens
from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.export import UnsupportedExportError, export_transformers
from hf_bitdistill.quantization import pack_dense
from students import LLAMA3_ROPE, assert_close, make_student


_OUTPUT, _ALL, _NONE = ({"sub_norm": name} for name in ("output", "all", "none"))
# What is kept in full precision has no SubLN.
_MASSIVE = ["layers.0.mlp.down_proj", "layers.1.self_attn.v_proj", "layers.1.self_attn.o_proj"]

# name -> (model type, options of the student, of its config, of the export, the class that it becomes)
STUDENTS = {
    # Epsilons that differ, and are large enough to show.
    "llama": ("llama", {**_OUTPUT, "sub_norm_eps": 1e-3}, {"rms_norm_eps": 0.05}, {}, "BitNetForCausalLM"),
    "bitlinear": ("llama", _OUTPUT, {"rope_parameters": LLAMA3_ROPE}, {"linear_class": "bitlinear"}, "BitNetForCausalLM"),
    "biases": ("qwen2", _OUTPUT, {"hidden_act": "gelu"}, {}, "BitNetForCausalLM"),
    "kept": ("mistral", {**_OUTPUT, "modules_to_not_convert": _MASSIVE}, {"sliding_window": None}, {}, "BitNetForCausalLM"),
    "kept_bitlinear": ("llama", {**_OUTPUT, "modules_to_not_convert": _MASSIVE}, {}, {"linear_class": "bitlinear"}, "BitNetForCausalLM"),
    "bare": ("llama", {**_OUTPUT, "modules_without_sub_norm": ["layers.1.mlp.down_proj"]}, {}, {}, "BitNetForCausalLM"),
    "dense_kept": ("llama", {**_OUTPUT, "modules_to_not_convert": _MASSIVE}, {}, {"dense": True, "dtype": "float32"}, "BitNetForCausalLM"),
    "all": ("qwen3", _ALL, {}, {}, "Qwen3ForCausalLM"),
    "all_biases": ("phi", _ALL, {}, {}, "PhiForCausalLM"),
    "all_bitlinear": ("phi", _ALL, {}, {"linear_class": "bitlinear"}, "PhiForCausalLM"),
    "rows": ("llama", {**_OUTPUT, "weight_granularity": "row", "sub_norm_eps": 1e-3}, {"rms_norm_eps": 0.05}, {}, "BitNetForCausalLM"),
    "groups": ("phi", {**_ALL, "weight_granularity": "group", "group_size": 64}, {"intermediate_size": 90}, {}, "PhiForCausalLM"),
    "odd": ("llama", _NONE, {"intermediate_size": 90}, {}, "LlamaForCausalLM"),
    "none": ("gemma2", _NONE, {}, {}, "Gemma2ForCausalLM"),
    "dense": ("llama", {**_OUTPUT, "sub_norm_eps": 1e-3}, {"rms_norm_eps": 0.05}, {"dense": True, "dtype": "float32"}, "BitNetForCausalLM"),
    "dense_weight_only": ("llama", {**_OUTPUT, "activation_bits": None, "sub_norm_eps": 1e-3}, {"rms_norm_eps": 0.05}, {"dense": True, "dtype": "float32"}, "BitNetForCausalLM"),
    "dense_rows": ("gpt2", {**_NONE, "weight_granularity": "row"}, {}, {"dense": True, "dtype": "float32"}, "GPT2LMHeadModel"),
    "dense_groups": ("qwen3", {**_NONE, "weight_granularity": "group", "group_size": 64}, {}, {"dense": True, "dtype": "float32"}, "Qwen3ForCausalLM"),
}  # fmt: skip

LOAD = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_bitdistill" or name.startswith("optimum.bitnet"):
            raise ImportError(f"{name} is not for this process")

sys.meta_path.insert(0, Refuse())
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
tokens = load_file(folder / "tokens.safetensors")["tokens"]
for name in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder / name, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        logits = model(tokens).logits
        written = model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None)
    save_file({"logits": logits.contiguous(), "written": written}, folder / f"{name}.found")
    print(type(model).__name__)
assert not [name for name in sys.modules if name.startswith("hf_bitdistill")]
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name -> what was computed by transformers alone, and our packed student, both in float32; and the folder."""
    folder = tmp_path_factory.mktemp("exported")
    tokens = random_tokens(1, 9)
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    ours = {}
    for name, (model_type, options, overrides, how, _) in STUDENTS.items():
        student = make_student(model_type, options=options, **overrides)
        source = folder / f"{name}.student"
        packed = pack(student, dtype="float32", table_bits=32)
        packed.save_pretrained(source)
        export_transformers(source, folder / name, **how)
        if how.get("dense"):  # what it is said to be: the same with activations that are not rounded
            packed = pack(make_student(model_type, options={**options, "activation_bits": None}, **overrides), dtype="float32", table_bits=32)  # fmt: skip
        ours[name] = packed
    done = warm.run(
        [sys.executable, "-c", LOAD, str(folder), *STUDENTS],
        # (transformers compiles parts of its layers at their first call, for minutes.)
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},
        ours=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [row[-1] for row in STUDENTS.values()]
    return {name: (load_file(folder / f"{name}.found"), packed) for name, packed in ours.items()}, folder, tokens


@pytest.mark.parametrize("name", STUDENTS)
def test_transformers_alone_computes_the_same(exported, name):
    """Sums are in another order, and a norm is divided by in another: 1e-5 of the logits' spread, unless that moves an activation over the
    border between two integers (see `assert_close`). What it writes is the same."""
    found, _, tokens = exported
    stock, ours = found[name]
    with torch.no_grad():
        assert_close(stock["logits"], ours(tokens).logits, 1e-5)
        written = ours.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(stock["written"], written)


def test_the_weights_stay_packed(exported):
    _, folder, _ = exported
    tensors = load_file(folder / "llama/model.safetensors")
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.uint8
    assert torch.equal(
        pack_dense(weight, 4 * len(weight)),
        load_file(folder / "llama.student/model.safetensors")["model.layers.0.mlp.up_proj.weight"],
    )
    config = json.loads((folder / "llama/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitnet" and "_comment" not in config
    assert "quantization_config" not in json.loads((folder / "dense/config.json").read_text())


def test_what_is_written_as_floats_is_told(tmp_path, caplog):
    pack(make_student(options=_NONE, intermediate_size=90), dtype="bfloat16").save_pretrained(tmp_path / "student")
    export_transformers(tmp_path / "student", tmp_path / "out")
    (record,) = [record for record in caplog.records if "written as floats" in record.message]
    assert "4 of 14 ternary matrices" in record.message and "a scale a tensor, 90 rows" in record.message
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.down_proj.weight"].dtype == torch.uint8


def test_a_student_in_training_with_tables_of_few_bits(tmp_path, capsys):
    """By the command; its tables become what packing them would make of them."""
    student = make_student()
    student.save_pretrained(tmp_path / "online")
    pack(student, table_bits=8).save_pretrained(tmp_path / "packed")
    assert main(["export", "transformers", str(tmp_path / "online"), str(tmp_path / "a")]) == 0
    assert "BitNetForCausalLM" in capsys.readouterr().out
    assert main(["export", "transformers", str(tmp_path / "packed"), str(tmp_path / "b"), "--dense"]) == 0
    assert "Activations are not rounded" in capsys.readouterr().out
    online, dense = (load_file(tmp_path / f"{name}/model.safetensors") for name in "ab")
    table = "model.embed_tokens.weight"
    expected = student.get_input_embeddings().weight
    assert torch.equal(online[table], pack(student).state_dict()[table].to(online[table].dtype))
    # Of one dtype, whatever the student's tables have: transformers does not change it.
    assert {tensor.dtype for name, tensor in online.items() if "norm" in name or "embed" in name} == {torch.float32}
    assert (dense[table].float() - expected).abs().max() < 0.02 * expected.abs().max()
    assert {tensor.dtype for tensor in dense.values()} == {torch.bfloat16}


@pytest.mark.parametrize("kept", [None, _MASSIVE])
def test_16_bits(tmp_path, kept):
    """As most will load it: bfloat16 rounds the scales and all activations, to 8 bits."""
    student = make_student(options={"modules_to_not_convert": kept})
    pack(student, dtype="bfloat16").save_pretrained(tmp_path / "packed")
    export_transformers(tmp_path / "packed", tmp_path / "out")
    with torch._dynamo.config.patch(disable=True), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.dtype == torch.bfloat16
        found = model(random_tokens()).logits.float()
    expected = student(random_tokens()).logits
    assert ((found - expected).abs().mean() / expected.std()) < 0.05


def test_the_card(tmp_path, tiny_tokenizer):
    pack(make_student()).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    export_transformers(tmp_path / "student", tmp_path / "plain")
    assert "transformers alone loads this copy" in ModelCard.load(tmp_path / "plain/README.md").text
    (tmp_path / "student/README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nText.\n")
    export_transformers(tmp_path / "student", tmp_path / "out", dense=True)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "mit"
    note, title, text = [line for line in card.text.splitlines() if line]
    assert note.startswith("> **transformers alone") and "not rounded to 8 bits" in note
    assert (title, text) == ("# Mine", "Text.")
    assert (tmp_path / "out/tokenizer.json").is_file() and (tmp_path / "out/generation_config.json").is_file()


def test_a_tokenizer_that_cannot_be_read_is_missed(tmp_path, tiny_tokenizer, caplog):
    pack(make_student()).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    export_transformers(tmp_path / "student", tmp_path / "whole")
    assert "has no tokenizer" not in caplog.text
    (tmp_path / "student/tokenizer.json").write_text("{")
    export_transformers(tmp_path / "student", tmp_path / "out")
    (record,) = [record for record in caplog.records if "has no tokenizer" in record.message]
    assert record.levelname == "WARNING" and str(tmp_path / "student") in record.message
    assert not (tmp_path / "out/tokenizer.json").exists()


@pytest.mark.parametrize(
    "model_type, options, overrides, how, reason",
    [
        ("qwen3", _OUTPUT, {}, {}, "norms of layer 0 are others than Llama's.*sub_norm='all' or 'none'"),
        ("llama", _OUTPUT, {"head_dim": 16}, {}, "4 heads of 16 are not the hidden size, 48"),
        ("llama", _OUTPUT, {"mlp_bias": True}, {}, "gate_proj has a bias"),
        ("mistral", _OUTPUT, {"sliding_window": 5}, {}, "window of 5"),
        ("phi3", _OUTPUT, {}, {}, "projections of layer 0 are fused"),
        ("gpt2", _OUTPUT, {}, {}, "architecture 'gpt2'"),
        ("llama", _ALL, {}, {"dense": True}, "has a SubLN.*leave --dense out"),
        ("llama", {**_ALL, "activation_bits": None}, {}, {"dense": True}, r"has a SubLN.*made with sub_norm='none' can be exported\.$"),
        ("llama", {**_NONE, "weight_granularity": "row"}, {}, {"linear_class": "bitlinear"}, "has a scale a row.*'autobitlinear'"),
        ("llama", {**_NONE, "activation_bits": None}, {}, {}, "activation_bits=None.*use --dense"),
        ("llama", _NONE, {"intermediate_size": 90}, {"linear_class": "bitlinear"}, "gate_proj has .* 90 rows.*'autobitlinear'"),
        ("gpt2", _NONE, {}, {}, "is a Conv1D.*use --dense"),
        ("mixtral", _ALL, {}, {}, "experts of a mixture are one tensor there"),
    ],
)  # fmt: skip
def test_what_transformers_cannot_compute_is_refused(tmp_path, model_type, options, overrides, how, reason):
    pack(make_student(model_type, options=options, **overrides)).save_pretrained(tmp_path / "student")
    with pytest.raises(UnsupportedExportError, match=reason):
        export_transformers(tmp_path / "student", tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_float16_has_no_such_numbers(tmp_path):
    packed = pack(make_student(options={"modules_to_not_convert": _MASSIVE}), dtype="float16")
    packed.save_pretrained(tmp_path / "student")
    with pytest.raises(UnsupportedExportError, match="give dtype='bfloat16'"):
        export_transformers(tmp_path / "student", tmp_path / "out")


def test_options(tmp_path):
    with pytest.raises(ValueError, match="linear_class='linear' is not supported"):
        export_transformers(tmp_path, tmp_path / "out", linear_class="linear")
