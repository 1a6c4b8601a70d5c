"""Loading, exporting, saving and falling back."""

import copy
import json
import logging
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stock import STOCK, save_stock
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import AutoConfig

from architectures import random_tokens, tiny_model
from hf_bitdistill import pack
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.modeling.lm_head import head_is_quantized
from hf_bitdistill.nn import TernaryLinear
from hf_bitdistill.runtime import NotAStudentError
from optimum.bitnet import BitNetModelForCausalLM
from optimum.bitnet.in_transformers import InTransformers
from students import assert_close, make_student


EXACT = {"head_bits": 32, "kv_dtype": "float32"}
native = pytest.mark.usefixtures("native_decoder")


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3"])
@torch.no_grad()
def test_export_of_an_online_student(tmp_path, model_type, dtype):
    student = make_student(model_type, dtype)
    student.save_pretrained(tmp_path / "online")
    with pytest.raises(NotAStudentError, match="export=True"):
        BitNetModelForCausalLM.from_pretrained(tmp_path / "online")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "online", export=True, **EXACT)
    tokens = random_tokens(2, 9)
    # In bfloat16 more activations lie on the border between two integers.
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert_close(model(tokens).logits, student.float()(tokens).logits, tolerance)

    # What it saves is what `pack` saves, and loads on both paths.
    for stored in ({}, {"dtype": "bfloat16", "table_bits": 8}, {"table_bits": 4}, {"table_bits": 32}):
        model.save_pretrained(tmp_path / "exported", **stored)
        packed = pack(student.to(dtype), **stored)
        packed.save_pretrained(tmp_path / "packed")
        ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("exported", "packed"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    again = BitNetModelForCausalLM.from_pretrained(tmp_path / "exported", **EXACT)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    modules = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert any(isinstance(module, TernaryLinear) for module in modules.modules())
    assert modules.config.quantization_config.to_dict() == packed.config.quantization_config.to_dict()
    again.save_pretrained(tmp_path / "twice", max_shard_size="10KB")
    assert (tmp_path / "twice" / "model.safetensors.index.json").is_file()
    twice = BitNetModelForCausalLM.from_pretrained(str(tmp_path / "twice"), **EXACT)
    assert torch.equal(twice(tokens).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="the model that is read"):
        twice.save_pretrained(tmp_path / "twice")


@native
@pytest.mark.parametrize("kind", sorted(STOCK))
@pytest.mark.parametrize("model_type", ["bitnet", "llama"])
@torch.no_grad()
def test_export_of_the_formats_of_transformers(tmp_path, uncompiled, kind, model_type):
    if kind == "rms_norm" and model_type == "bitnet":
        pytest.skip("two norms in a row: falls back")
    expected = save_stock(tmp_path / "stock", kind, model_type)
    with pytest.raises(NotAStudentError, match="export=True"):
        BitNetModelForCausalLM.from_pretrained(tmp_path / "stock")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "stock", export=True, **EXACT)
    assert model.backend == "native"
    tokens = random_tokens(2, 9)
    assert_close(model(tokens).logits, expected(tokens).logits)
    model.save_pretrained(tmp_path / "exported", table_bits=32)
    modules = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert_close(modules(tokens).logits, expected(tokens).logits)


@native
@torch.no_grad()
def test_a_bias_in_the_offline_format_is_scaled(tmp_path):
    expected = save_stock(tmp_path, "offline", "qwen2")
    for name, module in expected.named_modules():
        if hasattr(module, "online_quant") and module.bias is not None:
            gamma = load_file(tmp_path / "model.safetensors")[f"{name}.weight_scale"]
            module.bias.mul_(gamma)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, export=True, **EXACT)
    tokens = random_tokens(1, 9)
    assert_close(model(tokens).logits, expected(tokens).logits)


@native
@torch.no_grad()
def test_tied_tables_as_they_are_stored(tmp_path):
    tokens = random_tokens(2, 9)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    expected = pack(make_student(tie_word_embeddings=True))
    folder = tmp_path / "student"
    expected.save_pretrained(folder)
    assert head not in load_file(folder / "model.safetensors")
    # Under the other name, as some writers have it.
    edit(folder, lambda t: t.update({head: t.pop(embedding)}))
    model = BitNetModelForCausalLM.from_pretrained(folder, **EXACT)
    assert_close(model(tokens).logits, expected(tokens).logits)
    model.save_pretrained(tmp_path / "again")
    assert head not in load_file(tmp_path / "again" / "model.safetensors")
    # Both, and not the same: the config is wrong, and transformers does not tie them either.
    edit(folder, lambda t: t.update({embedding: t[head] + 0.1 * torch.randn_like(t[head])}))
    expected = AutoModelForCausalLM.from_pretrained(folder)
    model = BitNetModelForCausalLM.from_pretrained(folder, **EXACT)
    assert_close(model(tokens).logits, expected(tokens).logits)
    model.save_pretrained(tmp_path / "both")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "both", **EXACT)
    assert_close(model(tokens).logits, expected(tokens).logits)


@native
@torch.no_grad()
def test_bits_that_the_checkpoint_asks_for(tmp_path):
    packed = pack(make_student())
    packed.config.quantization_config.head_bits = 4
    packed.save_pretrained(tmp_path)
    tokens = random_tokens(2, 9)
    by_default, asked, more = (
        BitNetModelForCausalLM.from_pretrained(tmp_path, kv_dtype="float32", **options)
        for options in ({}, {"head_bits": 4}, {"head_bits": 16})
    )
    assert torch.equal(by_default(tokens).logits, asked(tokens).logits)
    assert by_default.decoder.weight_bytes < more.decoder.weight_bytes


@native
@pytest.mark.parametrize("bits, tolerance", [(16, 0.05), (8, 0.08), (4, 0.5)])
@torch.no_grad()
def test_bits_of_the_head(tmp_path, bits, tolerance):
    student = make_student()
    pack(student).save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, head_bits=bits)
    tokens = random_tokens(2, 9)
    expected = student(tokens).logits
    error = (model(tokens).logits - expected).norm() / expected.norm()
    assert error < tolerance, error
    sizes = {16: 2 * 96 * 48, 8: 96 * 48, 4: 96 * 48 // 2}
    exact = BitNetModelForCausalLM.from_pretrained(tmp_path, head_bits=32)
    saved = exact.decoder.weight_bytes - model.decoder.weight_bytes
    assert abs(saved - (4 * 96 * 48 - sizes[bits])) < 2000


def edit(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


Q = "model.layers.1.self_attn.q_proj"


def set_code_three(t):
    t[f"{Q}.weight"][3, 5] |= 3


def set_scale(value):
    return lambda t: t[f"{Q}.weight_scale"].fill_(value)


@native
@pytest.mark.parametrize(
    "message, change",
    [
        (f"'{Q}.weight' holds the invalid code 3", set_code_three),
        (f"'{Q}.weight' is constant", lambda t: t[f"{Q}.weight"].fill_(0b01010101)),
        (f"'{Q}.weight_scale' holds a scale that is not finite", set_scale(float("nan"))),
        (f"'{Q}.weight_scale' holds a scale that is not positive", set_scale(0.0)),
        (f"'{Q}.weight_scale' is missing", lambda t: t.pop(f"{Q}.weight_scale")),
        ("has shape", lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:5].clone()})),
        (
            "'model.embed_tokens.weight': a value is not finite",
            lambda t: t["model.embed_tokens.weight"][3].fill_(torch.nan),
        ),
        ("'model.norm.weight': a value is not finite", lambda t: t["model.norm.weight"][3].fill_(torch.inf)),
        (
            "'model.layers.0.mlp.down_proj.rms_norm.weight': a value is not finite",
            lambda t: t["model.layers.0.mlp.down_proj.rms_norm.weight"][3].fill_(torch.nan),
        ),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, message, change):
    pack(make_student(), weight_bits=2).save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises((CheckpointError, ValueError), match=message) as error:
        BitNetModelForCausalLM.from_pretrained(tmp_path)
    assert "model.safetensors" in str(error.value)


def test_truncated_and_missing_files(tmp_path):
    pack(make_student()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        BitNetModelForCausalLM.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(OSError, match=r"has no model.safetensors"):
        BitNetModelForCausalLM.from_pretrained(tmp_path)


@native
def test_a_latent_weight_that_is_not_finite(tmp_path):
    make_student().save_pretrained(tmp_path)
    edit(tmp_path, lambda t: t[f"{Q}.weight"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=f"'{Q}.weight'"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, export=True)


def test_what_is_no_student(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(NotAStudentError, match="full precision"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, export=True)
    with pytest.raises(TypeError, match="unknown options: numthreads"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, numthreads=2)


@pytest.mark.parametrize("online", [True, False])
@torch.no_grad()
def test_fallback_with_one_message(tmp_path, caplog, online):
    student = make_student("gpt2")
    (student if online else pack(student, table_bits=32)).save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.WARNING, logger="optimum.bitnet"):
        model = BitNetModelForCausalLM.from_pretrained(tmp_path / "model", export=online)
    messages = [record.message for record in caplog.records if record.name.startswith("optimum.bitnet")]
    assert len(messages) == 1 and "architecture 'gpt2'" in messages[0] and "slower" in messages[0]
    assert model.backend == "transformers" and model.decoder is None
    assert isinstance(model, InTransformers) and isinstance(model, BitNetModelForCausalLM)
    tokens = random_tokens(2, 9)
    # (An export packs as `pack` does by default.)
    assert_close(model(tokens).logits, (pack(student) if online else student)(tokens).logits)
    assert model.generate(tokens, max_new_tokens=3).shape == (2, 12)
    with pytest.raises(ValueError, match="table_bits: only what the native decoder loaded"):
        model.save_pretrained(tmp_path / "refused", table_bits=8)
    assert not (tmp_path / "refused").exists()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(copied(tokens).logits, model(tokens).logits) and copied.model is not model.model
    model.save_pretrained(tmp_path / "again")
    assert BitNetModelForCausalLM.from_pretrained(tmp_path / "again").backend == "transformers"


@torch.no_grad()
def test_options_on_the_fallback(tmp_path):
    pack(make_student("gpt2")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="kv_dtype='float8' is not supported"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, kv_dtype="float8")
    with pytest.raises(ValueError, match=r"kv_bits=4 is not supported; choose one of \(32, 16, 8\)"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, kv_bits=4)
    with pytest.raises(ValueError, match="kv_bits=8 is int8, kv_dtype='float16' is not"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, kv_bits=8, kv_dtype="float16")
    with pytest.raises(ValueError, match="num_threads=0"):
        BitNetModelForCausalLM.from_pretrained(tmp_path, num_threads=0)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, head_bits=8)
    assert model.backend == "transformers" and model.model.get_output_embeddings().table.bits == 8
    # The checkpoint's own bits, and what is asked for instead.
    config = AutoConfig.from_pretrained(tmp_path)
    config.quantization_config["head_bits"] = 4
    config.save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path)
    assert model.model.get_output_embeddings().table.bits == 4
    assert not head_is_quantized(BitNetModelForCausalLM.from_pretrained(tmp_path, head_bits=16).model)
    config.layer_norm_epsilon = 0.5
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, config=config)
    assert model.model.transformer.ln_f.eps == 0.5


@native
def test_generation_settings_travel(tmp_path):
    packed = pack(make_student())
    packed.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=2, pad_token_id=0)
    packed.save_pretrained(tmp_path / "a")
    BitNetModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "b")
    assert model.generation_config.max_new_tokens == 3
    assert (
        json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]["quant_method"] == "bitdistill"
    )
    with safe_open(tmp_path / "b" / "model.safetensors", "pt") as reader:
        assert reader.metadata()["format"] == "pt"
    assert AutoConfig.from_pretrained(tmp_path / "b").model_type == "llama"


@native
def test_a_real_model(shared_dir, tmp_path):
    from transformers import AutoTokenizer

    from hf_bitdistill import apply_bitnet

    folder = shared_dir / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    student = apply_bitnet(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    packed = pack(student)
    packed.save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, **EXACT)
    inputs = AutoTokenizer.from_pretrained(folder)("Once upon a time", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    options = {"max_new_tokens": 40, "do_sample": False}
    assert model.generate(**inputs, **options).tolist() == packed.generate(**inputs, **options).tolist()
