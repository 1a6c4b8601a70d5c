"""GGUF files against a reader and graphs of the tests' own: names, types, shapes, rotation, norms, factors, scales."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gguf_reader import graph_logits, read_gguf, values
from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.export import UnsupportedExportError, export_gguf, export_transformers
from hf_bitdistill.files.atomic import name_aside
from hf_bitdistill.nn import TernaryLinear
from students import make_student


F32, F16, Q8_0, Q4_0, Q6_K, BF16, TQ1_0, TQ2_0, Q2_0 = 0, 1, 8, 2, 14, 30, 34, 35, 42


def logits_of(folder, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def assert_same_model(file, folder, tokens):
    """An activation on the border of two integers may be rounded either way, which all later tokens see: a luck that not all texts have."""
    medians = []
    for first in range(0, len(tokens), 8):
        text = tokens[first : first + 8]
        expected = logits_of(folder, text)
        difference = (graph_logits(file, text) - expected).abs() / expected.std()
        assert difference.max() < 0.1
        medians.append(difference.median())
    assert min(medians) < 1e-5, medians


# Another epsilon of SubLNs than of norms (1e-6 in tiny models of Llama); each kind of scale; a projection without SubLN.
STUDENTS = {
    "bitnet": ("llama", {}, {}),
    "bitnet, another epsilon": ("llama", {"sub_norm_eps": 1e-3, "weight_granularity": "row"}, {}),
    "bitnet, a projection kept": ("llama", {"modules_to_not_convert": ["layers.1.mlp.down_proj", "layers.0.self_attn.q_proj"]}, {}),
    "bitnet, groups": ("llama", {"weight_granularity": "group", "group_size": 64}, {}),
    "bitnet, frequencies": ("llama", {}, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0}}),
    "llama": ("llama", {"sub_norm": "none", "weight_granularity": "row"}, {"tie_word_embeddings": False, "attention_bias": True}),
    "llama, frequencies": (
        "llama",
        {"sub_norm": "none"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 16}},
    ),
    "mistral": ("mistral", {"sub_norm": "none"}, {"head_dim": 32, "sliding_window": 40}),
    "qwen2": ("qwen2", {"sub_norm": "none"}, {"vocab_size": 390}),  # its tokenizer class adds a token
    "qwen3": ("qwen3", {"sub_norm": "none", "weight_granularity": "row"}, {"head_dim": 32}),
}  # fmt: skip


@pytest.mark.parametrize("case", STUDENTS)
def test_the_file_is_the_student(case, save_student, tokens, tmp_path):
    model_type, options, overrides = STUDENTS[case]
    folder = save_student(model_type, options, **overrides)
    result = export_gguf(folder, tmp_path / "out.gguf", table="f16")
    metadata, tensors = read_gguf(result.path)
    architecture = "bitnet" if case.startswith("bitnet") else {"mistral": "llama"}.get(model_type, model_type)
    assert metadata["general.architecture"] == result.architecture == architecture
    assert metadata[f"{architecture}.context_length"] == (40 if case == "mistral" else 64)
    assert_same_model(result.path, folder, tokens)
    kinds = {name.partition(".weight")[0]: tensor.type for name, tensor in tensors.items()}
    grouped = options.get("weight_granularity") == "group"
    assert kinds["blk.0.attn_k"] == (Q2_0 if grouped else TQ2_0)
    if "kept" in case:
        assert kinds["blk.1.ffn_down"] == kinds["blk.0.attn_q"] == BF16
        assert result.fallbacks["blk.1.ffn_down.weight"] == ("BF16", "kept in full precision")
        assert any("blk.1.ffn_sub_norm: made to do nothing" in note for note in result.notes)
    else:
        assert kinds["blk.1.ffn_down"] == Q2_0
        assert result.fallbacks["blk.1.ffn_down.weight"][0] == "Q2_0"
    assert ("sliding window" in str(result.notes)) == (case == "mistral")
    assert "tensors are Q2_0" in result.notes[-1]


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
def test_a_source_in_a_format_of_transformers(linear_class, save_student, tokens, tmp_path):
    """There the scale divides, or multiplies what the bias was added to: files hold that bias divided by the scale."""
    folder = save_student("qwen2", {"sub_norm": "none"}, vocab_size=390)
    export_transformers(folder, tmp_path / "stock", linear_class=linear_class)
    ours = load_file(folder / "model.safetensors")["model.layers.0.self_attn.k_proj.bias"]
    stock = load_file(tmp_path / "stock/model.safetensors")["model.layers.0.self_attn.k_proj.bias"]
    assert ours.abs().min() > 0 and torch.equal(ours, stock) == (linear_class == "bitlinear")
    result = export_gguf(tmp_path / "stock", tmp_path / "out.gguf", table="f16")
    assert_same_model(result.path, folder, tokens)
    torch.testing.assert_close(values(read_gguf(result.path)[1]["blk.0.attn_k.bias"]), ours)


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0", "f16"])
def test_effective_weights(kind, save_student, tmp_path):
    """In the file they are code times scale, the scale rounded to float16, and nothing else."""
    folder = save_student(options={"weight_granularity": "row"}, exact=False)
    result = export_gguf(folder, tmp_path / "out.gguf", kind)
    metadata, tensors = read_gguf(result.path)
    numbers = {"tq1_0": (TQ1_0, Q2_0, 36), "tq2_0": (TQ2_0, Q2_0, 37), "q2_0": (Q2_0, Q2_0, 41), "f16": (F16, F16, 1)}[
        kind
    ]
    found = tensors["blk.0.ffn_gate.weight"].type, tensors["blk.0.ffn_down.weight"].type, metadata["general.file_type"]
    assert found == numbers
    model = AutoModelForCausalLM.from_pretrained(folder)
    for index, layer in enumerate(model.model.layers):
        parts = {
            "attn_q": layer.self_attn.q_proj,
            "attn_output": layer.self_attn.o_proj,
            "ffn_down": layer.mlp.down_proj,
        }
        for name, module in parts.items():
            assert isinstance(module, TernaryLinear)
            expected = module.unpack() * module.weight_scale.half().float()[:, None]
            assert torch.equal(values(tensors[f"blk.{index}.{name}.weight"]), expected), name
    assert 0 < result.scale_error <= 2**-11
    assert torch.equal(values(tensors["blk.0.ffn_norm.weight"]), model.model.layers[0].post_attention_layernorm.weight)


@pytest.mark.parametrize("table", ["q8_0", "q6_k", "q4_0", "f16"])
def test_the_table(table, save_student, tmp_path):
    folder = save_student()
    export_gguf(folder, tmp_path / "out.gguf", table=table)
    tensor = read_gguf(tmp_path / "out.gguf")[1]["token_embd.weight"]
    assert tensor.type == {"q8_0": Q8_0, "q6_k": Q6_K, "q4_0": Q4_0, "f16": F16}[table]
    expected = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.float()
    error = ((values(tensor) - expected).norm() / expected.norm()).item()
    assert error < {"q8_0": 6e-3, "q6_k": 2.5e-2, "q4_0": 0.1, "f16": 4e-4}[table]


def test_rows_that_fit_no_block(save_student, tmp_path):
    """Rows of 96 have Q4_0, rows of 80 only F16; the reader that knows no Q2_0 gets Q4_0 too."""
    folder = save_student(hidden_size=96, intermediate_size=80)
    result = export_gguf(folder, tmp_path / "out.gguf", table="q6_k")
    tensors = read_gguf(result.path)[1]
    assert tensors["blk.0.attn_q.weight"].type == Q4_0 and tensors["token_embd.weight"].type == Q8_0
    assert tensors["blk.0.ffn_down.weight"].type == F16
    assert (
        result.fallbacks["blk.0.ffn_down.weight"][1]
        == "rows of 80 are no multiple of 256; rows of 80 are no multiple of 64"
    )
    assert_exact(folder, tensors)
    shutil.rmtree(folder)
    folder = save_student(options={"weight_granularity": "group", "group_size": 64})
    result = export_gguf(folder, tmp_path / "out.gguf", allow_q2_0=False)
    tensors = read_gguf(result.path)[1]
    assert tensors["blk.0.ffn_down.weight"].type == tensors["blk.0.ffn_up.weight"].type == Q4_0
    assert_exact(folder, tensors)
    assert "Q4_0" in result.text() and "no multiple of 256" in result.text() and "are Q2_0" not in result.text()


def test_options_that_contradict_each_other(save_student, tmp_path, capsys):
    output = tmp_path / "out.gguf"
    assert main(["export", "gguf", str(save_student()), str(output), "--type", "q2_0", "--no_q2_0"]) == 1
    assert "type='q2_0' asks for what allow_q2_0=False (--no_q2_0) excludes" in capsys.readouterr().err
    assert not output.exists()


def assert_exact(folder, tensors):
    model = AutoModelForCausalLM.from_pretrained(folder)
    for index, layer in enumerate(model.model.layers):
        for name, module in {"ffn_up": layer.mlp.up_proj, "ffn_down": layer.mlp.down_proj}.items():
            scales = module.weight_scale.view(len(module.weight_scale), -1)
            width = module.group_size or module.in_features
            expected = module.unpack() * scales.repeat_interleave(width, 1)[:, : module.in_features]
            assert torch.equal(values(tensors[f"blk.{index}.{name}.weight"]), expected), name


@pytest.mark.parametrize("bits", [8, 4])
def test_tables_in_integers_and_a_student_in_training(bits, save_student, tmp_path, tiny_tokenizer):
    folder = save_student(packed=False)
    online = export_gguf(folder, tmp_path / "online.gguf", table="f16", name="student")
    student = make_student(
        hidden_size=256, intermediate_size=320, num_attention_heads=4, num_key_value_heads=2, vocab_size=384
    )
    student.to(torch.bfloat16).float()
    pack(student, dtype="float32", table_bits=32).save_pretrained(tmp_path / "packed")
    tiny_tokenizer.save_pretrained(tmp_path / "packed")
    packed = export_gguf(tmp_path / "packed", tmp_path / "packed.gguf", table="f16", name="student")
    assert online.path.read_bytes() == packed.path.read_bytes()
    pack(student, table_bits=bits).save_pretrained(tmp_path / "integers")
    tiny_tokenizer.save_pretrained(tmp_path / "integers")
    export_gguf(tmp_path / "integers", tmp_path / "integers.gguf", table="f16")
    table = values(read_gguf(tmp_path / "integers.gguf")[1]["token_embd.weight"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "integers", dtype=torch.float32).get_input_embeddings()
    assert torch.equal(table, loaded(torch.arange(384)).half().float())


REFUSED = {
    "a SubLN before": ("llama", {"sub_norm": "all"}, {}),
    "norms of queries and keys": ("qwen3", {}, {"head_dim": 64, "tie_word_embeddings": True}),
    "an output head of its own": ("llama", {}, {"tie_word_embeddings": False}),
    "a bias of model.layers.0.self_attn.q_proj": ("llama", {}, {"attention_bias": True}),
    "a bias of model.layers.0.self_attn.o_proj": ("qwen3", {"sub_norm": "none"}, {"attention_bias": True, "head_dim": 64}),
    "heads that are not as wide": ("llama", {}, {"head_dim": 32}),
    "no SubLN before model.layers.1.self_attn.o_proj": ("llama", {"modules_to_not_convert": ["layers.1.self_attn.o_proj"]}, {}),
    "the activation 'relu2'": ("llama", {}, {"hidden_act": "relu2"}),
    "students of 'gemma2'": ("gemma2", {"sub_norm": "none"}, {"head_dim": 64}),
    "'yarn' with scaled attention": (
        "llama",
        {},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "whose factors 'qwen2' does not read": (
        "qwen2",
        {"sub_norm": "none"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 16}},
    ),
    "architecture 'gpt_neox'": ("gpt_neox", {"sub_norm": "none"}, {"num_key_value_heads": 4}),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(reason, save_student, tmp_path):
    model_type, options, overrides = REFUSED[reason]
    folder = save_student(model_type, options, **overrides)
    with pytest.raises(UnsupportedExportError, match=reason) as error:
        export_gguf(folder, tmp_path / "out.gguf")
    assert str(folder) in str(error.value) and "hf_bitdistill's own loaders" in str(error.value)
    assert not (tmp_path / "out.gguf").exists()
    # (Where its SubLN is missing, the remedy is another one.)
    assert ("--keep_massive_ratio 0" in str(error.value)) == reason.startswith("no SubLN before")
    assert ("sub_norm='output' for models" in str(error.value)) != reason.startswith("no SubLN before")


def test_metadata(save_student, tmp_path):
    folder = save_student()
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: some/base-model\n---\n\n# A student\n")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [2, 5]}))
    export_gguf(folder, tmp_path / "out.gguf")
    metadata, _ = read_gguf(tmp_path / "out.gguf")
    expected = {
        "general.license": "mit",
        "general.base_model.0.name": "base-model",
        "general.base_model.0.organization": "some",
        "general.base_model.0.repo_url": "https://huggingface.co/some/base-model",
        "general.quantization_version": 2,
        "bitnet.block_count": 2,
        "bitnet.embedding_length": 256,
        "bitnet.feed_forward_length": 320,
        "bitnet.attention.head_count": 4,
        "bitnet.attention.head_count_kv": 2,
        "bitnet.rope.dimension_count": 64,
        "bitnet.rope.freq_base": 10000.0,
        "bitnet.vocab_size": 384,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert metadata["bitnet.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_the_command(save_student, tmp_path, capsys):
    folder = save_student(exact=False)
    output = tmp_path / "out.gguf"
    output.write_text("an older file")
    assert main(["export", "gguf", str(folder), str(output), "--type", "tq1_0", "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "Q2_0, because rows of 320 are no multiple of 256: blk.*.ffn_down." in printed
    assert "| TQ1_0 | 12 |" in printed and "rounded to 16 bits" in printed
    assert read_gguf(output)[0]["general.name"] == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "student"]
    # Nothing of a model can be overwritten, and a failure leaves what was there.
    before = output.read_bytes()
    assert main(["export", "gguf", str(folder), str(folder / "model.safetensors")]) == 1
    assert "must end in .gguf" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert main(["export", "gguf", str(folder), str(output)]) == 1
    assert output.read_bytes() == before
    assert main(["export", "onnx", str(folder), str(output)]) == 1
    assert "unknown format 'onnx'" in capsys.readouterr().err
    assert main(["export", "--help"]) == 0
    assert "llama.cpp" in capsys.readouterr().out


def test_a_damaged_tensor_leaves_the_older_file(save_student, tmp_path):
    from hf_bitdistill.files.tensor_headers import CheckpointError

    folder = save_student()
    output = tmp_path / "out.gguf"
    export_gguf(folder, output)
    before = output.read_bytes()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.rms_norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})  # without digests
    with pytest.raises(CheckpointError, match=r"down_proj\.rms_norm"):
        export_gguf(folder, output)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "student"]


def test_what_a_killed_writer_left_makes_room(save_student, tmp_path, monkeypatch):
    folder, output = save_student(), tmp_path / "out.gguf"
    left = name_aside(output)
    left.write_bytes(b"GGUF")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000 if left.exists() else usage.free))
    export_gguf(folder, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "student"]


def test_no_room(save_student, tmp_path, monkeypatch):
    folder, output = save_student(), tmp_path / "out.gguf"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="of free space and about"):
        export_gguf(folder, output)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
