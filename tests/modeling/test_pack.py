"""What `pack` stores, and how it loads again: dtypes, tables of 16, 8 and 4 bits, both loaders."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from architectures import random_tokens, tiny_config, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, pack, quantize_head
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.nn import QuantizedHead, StoredTable, SubLN
from hf_bitdistill.ops import binding
from hf_bitdistill.quantization import PackedWeightError, quantize_table
from optimum.bitnet import BitNetModelForCausalLM
from students import edit_quantization, make_student, stored_tensors


BOTH = pytest.mark.parametrize("bits", [8, 4])
# Tied, untied with an odd vocabulary, Conv1D, a head of another name in public checkpoints, scaled embeddings.
MODELS = [
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": False, "vocab_size": 97}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("gemma3_text", {}),
]


def logits(model, tokens=None):
    with torch.no_grad():
        return model(random_tokens() if tokens is None else tokens).logits


@pytest.mark.parametrize(("model_type", "options"), MODELS)
@pytest.mark.parametrize(("bits", "dtype"), [(16, "bfloat16"), (16, "float32"), (8, "bfloat16"), (4, "float32")])
def test_a_packed_model_its_checkpoint_and_a_copy_of_that_are_one(model_type, options, bits, dtype, tmp_path):
    packed = pack(make_student(model_type, **options), dtype=dtype, table_bits=bits)
    packed.save_pretrained(tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert model.dtype == getattr(torch, dtype)
    assert torch.equal(logits(model), logits(packed))
    model.save_pretrained(tmp_path / "two", max_shard_size="30KB")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    model.save_pretrained(tmp_path / "three")
    one, three = (tmp_path / name / "model.safetensors" for name in ("one", "three"))
    assert one.read_bytes() == three.read_bytes()
    embedding = next(
        name
        for name in stored_tensors(tmp_path / "one")
        if name.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight"))
    )
    assert stored_tensors(tmp_path / "one")[embedding].element_size() == (2 if bits == 16 else 1)


@BOTH
@pytest.mark.parametrize(("model_type", "options"), MODELS[:2])
def test_tables_hold_the_integers_that_quantize_head_makes(bits, model_type, options, tmp_path):
    student = make_student(model_type, **options)
    stored = pack(student, dtype="float32", table_bits=bits)
    rounded = quantize_head(pack(student, table_bits=32), bits)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(stored, layer)().table.kernel_weight(), getattr(rounded, layer)().table.weight)
    assert torch.equal(logits(stored), logits(rounded))

    pack(student, table_bits=32).save_pretrained(tmp_path / "floats")
    stored.save_pretrained(tmp_path / "integers")
    native_logits = [
        logits(BitNetModelForCausalLM.from_pretrained(tmp_path / name, head_bits=number))
        for name, number in (("floats", bits), ("integers", None), ("integers", bits), ("integers", 32))
    ]
    assert all(torch.equal(found, native_logits[0]) for found in native_logits[1:])


def test_fewer_bits_than_stored(tmp_path):
    packed = pack(make_student(tie_word_embeddings=False), dtype="float32", table_bits=8)
    packed.save_pretrained(tmp_path)
    expected = logits(quantize_head(packed, 4))
    edit_quantization(tmp_path, head_bits=4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model), expected)
    native_model = BitNetModelForCausalLM.from_pretrained(tmp_path, kv_dtype="float32")
    assert (logits(native_model) - expected).abs().max() < 0.1 * expected.std()
    with pytest.raises(ValueError, match="table_bits"):
        model.save_pretrained(tmp_path / "again")


@BOTH
def test_without_the_library_and_away_from_the_kernels(bits, monkeypatch):
    packed = pack(make_student(vocab_size=97, hidden_size=40), dtype="float32", table_bits=bits)
    expected = logits(packed)
    monkeypatch.setattr(StoredTable, "_uses_kernels", lambda self, x: False)
    found = logits(packed)
    assert (found - expected).abs().max() < 1e-3 * expected.std()
    monkeypatch.undo()
    monkeypatch.setattr(binding, "library", lambda: None)
    packed.get_input_embeddings().table._drop_packed()
    assert (logits(packed) - expected).abs().max() < 0.1 * expected.std()


def test_everything_else_is_in_the_dtype_but_the_scales():
    student = make_student("llama", attention_bias=True)
    packed = pack(student, dtype="float16", table_bits=8)
    assert {p.dtype for p in packed.parameters()} == {torch.float16}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    layer = packed.model.layers[0].mlp.down_proj
    assert layer.weight_scale.dtype == torch.float32 and isinstance(layer.rms_norm, SubLN)
    assert packed.config.dtype == torch.float16
    assert (
        packed.model.rotary_emb.inv_freq.dtype == torch.float32
    )  # computed, not stored: rounding it would move positions
    scale = packed.get_output_embeddings().table.weight_scale
    assert packed.to(torch.bfloat16).get_output_embeddings().table.weight_scale is scale


def test_the_default_is_the_dtype_of_the_source(tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=BitNetConfig(), dtype=torch.float32
    )
    in_memory = apply_bitnet(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32))
    loaded.save_pretrained(tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert again.dtype == torch.float32
    for student in (loaded, in_memory, again):
        assert student.config.quantization_config.source_dtype == "bfloat16"
        assert {p.dtype for p in pack(student).parameters()} == {torch.bfloat16}
    # Of a student of an earlier version nothing is known.
    edit_quantization(tmp_path / "student", source_dtype=None)
    unknown = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert {p.dtype for p in pack(unknown).parameters()} == {torch.bfloat16}


def test_float32_tables_are_stored_in_the_16_bits_that_change_them_least(tmp_path):
    student = make_student("llama", tie_word_embeddings=False)
    student.lm_head.weight.data = student.lm_head.weight.data.bfloat16().float()
    student.model.embed_tokens.weight.data[3, 5] = 0.1 + 2**-9
    packed = pack(student, dtype="float32")
    packed.save_pretrained(tmp_path / "default")
    tensors = stored_tensors(tmp_path / "default")
    assert tensors["lm_head.weight"].dtype == torch.bfloat16
    assert tensors["model.embed_tokens.weight"].dtype == torch.float16
    assert {p.dtype for p in packed.parameters()} == {torch.float32}
    # All of it, for comparisons with the student.
    exact = pack(student, table_bits=32)
    assert torch.equal(logits(exact), logits(student))
    exact.save_pretrained(tmp_path / "exact")
    assert stored_tensors(tmp_path / "exact")["model.embed_tokens.weight"].dtype == torch.float32


def test_inplace_gives_the_same(tmp_path):
    student = make_student("gemma3_text")
    expected = logits(pack(student, dtype="bfloat16", table_bits=4))
    assert pack(student, inplace=True, dtype="bfloat16", table_bits=4) is student
    assert torch.equal(logits(student), expected)
    assert isinstance(student.get_output_embeddings(), QuantizedHead)


@BOTH
def test_a_classifier_has_a_table_too(bits, tmp_path):
    student = apply_bitnet(AutoModelForSequenceClassification.from_config(tiny_config("llama")).eval())
    packed = pack(student, dtype="float32", table_bits=bits)
    packed.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(model), logits(packed)) and type(model.score) is torch.nn.Linear


@BOTH
def test_state_dicts_have_the_names_of_files(bits, tmp_path):
    packed = pack(make_student(tie_word_embeddings=False), dtype="float32", table_bits=bits)
    packed.save_pretrained(tmp_path)
    state = packed.state_dict()
    assert state.keys() == stored_tensors(tmp_path).keys()
    expected, table = logits(packed), packed.lm_head.table
    other = pack(make_student(tie_word_embeddings=False), dtype="float32", table_bits=bits)
    with torch.no_grad():
        table.weight.zero_()
    assert not torch.equal(logits(packed), expected)
    packed.load_state_dict(other.state_dict())
    assert torch.equal(logits(packed), expected)


def test_an_option_of_its_own_says_so(tmp_path):
    pack(make_student()).save_pretrained(tmp_path / "16")
    pack(make_student(), table_bits=8).save_pretrained(tmp_path / "8")
    options = [
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"] for name in ("16", "8")
    ]
    # What knows nothing of tables in integers reads the first, and stops at the second's unknown option.
    assert "table_bits" not in options[0] and "source_dtype" not in options[0] and options[1]["table_bits"] == 8
    with pytest.raises(ValueError, match=r"a_newer_option.*newer version"):
        BitNetConfig.from_dict({**options[1], "a_newer_option": 1})


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, BitNetModelForCausalLM])
def test_another_number_of_bits_than_was_saved_is_refused(loader, tmp_path):
    pack(make_student(), table_bits=8).save_pretrained(tmp_path)
    for bits in (16, 4):
        edit_quantization(tmp_path, table_bits=bits)
        with pytest.raises(CheckpointError, match=r"embed_tokens.weight|table_bits"):
            loader.from_pretrained(tmp_path)


def damage(name, change):
    def apply(tensors):
        change(tensors[name])
        return tensors

    return apply


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, BitNetModelForCausalLM])
@pytest.mark.parametrize(
    ("bits", "change", "message"),
    [
        (8, damage("lm_head.weight", lambda t: t[3].fill_(-128)), "lm_head.weight' holds the code -128"),
        (8, damage("lm_head.weight_scale", lambda t: t[3].fill_(torch.nan)), "lm_head.weight_scale' is not finite"),
        (
            8,
            damage("model.embed_tokens.weight_scale", lambda t: t[3].neg_()),
            "embed_tokens.weight_scale' is negative",
        ),
        (4, damage("lm_head.weight_scale", lambda t: t[3, 0].fill_(torch.inf)), "lm_head.weight_scale' is not finite"),
        (4, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight_scale"}, "lm_head.weight_scale"),
        (
            4,
            lambda t: t | {"lm_head.weight": t["lm_head.weight"].to(torch.int8)},
            "lm_head.weight' is I8, expected U8",
        ),
        (8, lambda t: t | {"lm_head.weight": t["lm_head.weight"][:-1].clone()}, "lm_head.weight' has shape"),
    ],
)
def test_a_damaged_table_is_refused_with_its_name(loader, bits, change, message, tmp_path):
    pack(make_student(tie_word_embeddings=False), table_bits=bits).save_pretrained(tmp_path)
    # Without digests, which would find all of it.
    save_file(change(stored_tensors(tmp_path)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        loader.from_pretrained(tmp_path)


def test_refusals():
    student = make_student()
    with pytest.raises(ValueError, match="table_bits=6"):
        pack(student, table_bits=6)
    with pytest.raises(ValueError, match="dtype='int8'"):
        pack(student, dtype="int8")
    with pytest.raises(ValueError, match="table_bits=32 keeps the tables in float32"):
        pack(student, dtype="bfloat16", table_bits=32)
    student.model.norm.weight.data[0] = 1e6
    with pytest.raises(PackedWeightError, match=r"model.norm.weight .*too large for torch.float16"):
        pack(student, dtype="float16")
    student.model.embed_tokens = torch.nn.EmbeddingBag(96, 48)
    with pytest.raises(SurgeryError, match="EmbeddingBag is no Embedding"):
        pack(student, table_bits=8)
    packed = pack(make_student(), table_bits=8)
    with pytest.raises(AttributeError, match="before it is packed"):
        packed.resize_token_embeddings(100)


@BOTH
def test_rounding_of_a_table_in_a_file_is_that_in_memory(bits):
    table = torch.randn(35, 33, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_table(table, bits)
    stored = StoredTable(codes, scale, 33)
    stored.check()
    step = scale.float().abs().amax(dim=-1 if bits == 4 else 0)
    assert (stored.dequantized(slice(None)) - table).abs().max() <= step.max() * (0.51 if bits == 8 else 1.0)
    if bits == 4:
        codes[0, -1] |= 0x30
        with pytest.raises(ValueError, match="beyond its last column"):
            stored.check()


def test_the_config_of_a_model_of_the_native_loader_says_how_it_is_stored(tmp_path):
    pack(make_student(), dtype="bfloat16", table_bits=4).save_pretrained(tmp_path / "one")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "two")
    one, two = (stored_tensors(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert AutoConfig.from_pretrained(tmp_path / "two").quantization_config["table_bits"] == 4
