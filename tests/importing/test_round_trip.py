"""A student that was exported to GGUF and is imported again computes what it did."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import random_tokens
from hf_bitdistill import pack
from hf_bitdistill.export import export_gguf
from hf_bitdistill.importing import import_gguf
from hf_bitdistill.nn import TernaryLinear
from students import make_student


SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
# type, model type, options of the student, of the model
CASES = {
    "bitnet": ("tq2_0", "llama", {"sub_norm_eps": 1e-6}, {}),
    "bitnet, another epsilon": ("tq1_0", "llama", {"sub_norm_eps": 1e-3, "weight_granularity": "row"}, {}),
    "bitnet, a projection kept": ("q2_0", "llama", {"modules_to_not_convert": ["layers.1.mlp.down_proj"]}, {}),
    "llama 3": ("tq2_0", "llama", {"sub_norm": "none"}, {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "qwen3, groups": ("q2_0", "qwen3", {"sub_norm": "none", "weight_granularity": "group"}, {"head_dim": 32}),
}


def float_logits(folder):
    """Without rounded activations, where every difference would tip over some."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for module in model.modules():
        if isinstance(module, TernaryLinear):
            module.activation_bits = None
    with torch.no_grad():
        return model(random_tokens(2, 9)).logits


@pytest.mark.parametrize("case", CASES)
def test_round_trip(tmp_path, tiny_tokenizer, case):
    kind, model_type, options, overrides = CASES[case]
    student = make_student(model_type, options=options, **SHAPE, **{"vocab_size": 384, **overrides})
    student.to(torch.bfloat16).float()
    packed = pack(student, dtype="float32", table_bits=32)
    for layer in packed.modules():
        if isinstance(layer, TernaryLinear):
            layer.weight_scale = layer.weight_scale.half().float()
    packed.save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    export_gguf(tmp_path / "student", tmp_path / "model.gguf", type=kind, table="f16")
    found = import_gguf(tmp_path / "model.gguf", tmp_path / "again", answers=False)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("student", "again"))
    codes = [name for name, tensor in before.items() if tensor.dtype == torch.uint8]
    assert codes and all(torch.equal(before[name], after[name]) for name in codes)
    assert found.quantization.weight_granularity == options.get("weight_granularity", "tensor")
    assert set(found.kept) == {"model." + name for name in options.get("modules_to_not_convert", ())}
    if "epsilon" not in case:  # (which is told by a factor in the file)
        assert before.keys() == after.keys()
        # (A table of F16 has no values as small as bfloat16 has.)
        halved = {name: before[name].half() if "embed" in name or "head" in name else before[name] for name in before}
        assert [name for name in before if not torch.equal(halved[name].float(), after[name].float())] == []
    expected = float_logits(tmp_path / "student")
    assert (float_logits(tmp_path / "again") - expected).abs().max() < 1e-4 * expected.std()
    text = "the little robot waters 12 plants ."
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
