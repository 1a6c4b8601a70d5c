"""GGUF files as packed students: what they compute is what the file means."""

import pytest
import torch
from gguf_files import GgufModel, some_tokens
from transformers import AutoModelForCausalLM

from hf_bitdistill.importing import import_gguf
from hf_bitdistill.layers import TernaryLinear


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def close(logits, expected):
    """The median difference, in units of the logits' spread."""
    return ((logits - expected).abs().median() / expected.std()).item()


@pytest.mark.parametrize(
    "arch, kind, scales, granularity, group",
    [
        ("llama", "TQ2_0", "tensor", "tensor", None),
        ("llama", "Q2_0-128", "block", "group", 128),
        ("qwen2", "Q2_0", "block", "group", 64),
        ("qwen3", "Q2_0-128", "block", "group", 128),
        ("qwen3", "TQ1_0", "block", "group", 128),
        ("bitnet", "TQ1_0", "row", "row", None),
        ("bitnet", "TQ2_0", "tensor", "tensor", None),
    ],
)
@torch.no_grad()
def test_known_answers(tmp_path, arch, kind, scales, granularity, group):
    source = GgufModel(arch, kind, scales)
    file = source.save(tmp_path / "model.gguf")
    found = import_gguf(file, tmp_path / "out", answers=False, table_bits=32)
    tokens = some_tokens()
    options = found.quantization
    assert (options.weight_granularity, options.scale_group_size) == (granularity, group)
    assert options.sub_norm == ("output" if arch == "bitnet" else "none") and not found.kept
    model = load(tmp_path / "out")
    # (Sums in another order tip over some roundings to integers, each of which is a hundredth of a layer's largest input.)
    assert close(model(tokens).logits, source.logits(tokens)) < 0.05
    for module in model.modules():
        if isinstance(module, TernaryLinear):
            module.activation_bits = None
    assert close(model(tokens).logits, source.logits(tokens, None)) < 1e-5
    # The weights themselves: codes times scales are those of the file, to the last bit.
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        layer = model.get_submodule(name)
        scale = layer.weight_scale
        if granularity == "group":
            scale = scale.repeat_interleave(group, 1)
        elif granularity == "row":
            scale = scale[:, None]
        assert torch.equal(layer.unpack(torch.float32) * scale, source.state[f"{name}.weight"])
