"""Files for bitnet.cpp against a reader of the tests' own."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from gguf_reader import graph_logits, read_gguf, values
from hf_bitdistill.cli.main import main
from hf_bitdistill.export import UnsupportedExportError, export_i2_s, export_transformers


F16, BF16, I2_S = 1, 30, 36


@pytest.mark.parametrize(("layout", "width"), [("x86", 32), ("arm", 16)])
def test_effective_weights(layout, width, save_student, tmp_path):
    """Scales are float32 in such files: nothing is rounded. Rows of 320 are no multiple of 128, but of 64."""
    folder = save_student(exact=False)
    result = export_i2_s(folder, tmp_path / "out.gguf", layout)
    metadata, tensors = read_gguf(result.path)
    assert metadata["general.architecture"] == "bitnet" and metadata["general.file_type"] == 40
    assert tensors["token_embd.weight"].type == F16
    assert tensors["blk.0.ffn_up.weight"].type == I2_S
    assert tensors["blk.0.ffn_down.weight"].type == (F16 if layout == "x86" else I2_S)
    assert ("blk.0.ffn_down.weight" in result.fallbacks) == (layout == "x86")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for index, layer in enumerate(model.model.layers):
        for name, module in {"attn_k": layer.self_attn.k_proj, "ffn_gate": layer.mlp.gate_proj}.items():
            expected = module.unpack() * module.weight_scale
            assert torch.equal(values(tensors[f"blk.{index}.{name}.weight"], width), expected), name


def test_the_file_is_the_student(save_student, tokens, tmp_path, capsys):
    """With a projection that is kept, whose SubLN has to be made to do nothing; by the command."""
    folder = save_student(options={"modules_to_not_convert": ["layers.0.mlp.down_proj"]}, intermediate_size=384)
    assert main(["export", "i2_s", str(folder), str(tmp_path / "out.gguf")]) == 0
    assert "| I2_S | 13 |" in capsys.readouterr().out
    assert read_gguf(tmp_path / "out.gguf")[1]["blk.0.ffn_down.weight"].type == BF16
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    difference = (graph_logits(tmp_path / "out.gguf", tokens) - expected).abs() / expected.std()
    assert difference.max() < 0.1 and difference.median() < 1e-2


def test_biases_of_a_source_in_the_format_of_transformers(save_student, tmp_path):
    """There a bias is stored divided by the weight's scale."""
    folder = save_student("qwen2", {"sub_norm": "none"}, vocab_size=390, intermediate_size=384)
    export_transformers(folder, tmp_path / "stock")
    export_i2_s(tmp_path / "stock", tmp_path / "out.gguf")
    tensors = read_gguf(tmp_path / "out.gguf")[1]
    assert tensors["blk.1.attn_v.weight"].type == I2_S
    attention = AutoModelForCausalLM.from_pretrained(folder).model.layers[1].self_attn
    for name in "qkv":
        expected = attention.get_submodule(f"{name}_proj").bias
        torch.testing.assert_close(values(tensors[f"blk.1.attn_{name}.bias"]), expected.detach().float())


def test_what_bitnet_cpp_does_not_compute_is_refused(save_student, tmp_path):
    folder = save_student(options={"weight_granularity": "row"})
    with pytest.raises(
        UnsupportedExportError, match=r"a scale for each row.*weight_granularity='tensor'.*export gguf"
    ):
        export_i2_s(folder, tmp_path / "out.gguf")
    with pytest.raises(ValueError, match="layout 'riscv' is not supported"):
        export_i2_s(folder, tmp_path / "out.gguf", "riscv")
    assert not (tmp_path / "out.gguf").exists()


def test_an_architecture_it_does_not_have(save_student, tmp_path):
    folder = save_student("qwen3", {"sub_norm": "none"}, head_dim=64)
    with pytest.raises(UnsupportedExportError, match="no architecture 'qwen3'"):
        export_i2_s(folder, tmp_path / "out.gguf")
