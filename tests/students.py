"""Tiny students and their checkpoints."""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.runtime import Student


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# model_type -> options that switch on what its defaults leave off.
VARIANTS = [(name, {}) for name in NATIVE] + [
    ("mistral", {"sliding_window": 5}),
    ("phi3", {"sliding_window": 5}),
    ("phi3", {"partial_rotary_factor": 0.5}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "attention_bias": True}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [0, 1], "mlp_bias": True}),
    ("gemma2", {"sliding_window": 4, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}),
    ("gemma3_text", {"sliding_window": 4, "sliding_window_pattern": 2, "final_logit_softcapping": 2.0}),
    ("gemma3_text", {"attn_logit_softcapping": 0.5}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    ("llama", {"hidden_act": "relu2", "head_dim": 16}),
    ("llama", {"hidden_act": "gelu_new"}),
    ("mixtral", {"sliding_window": 5, "num_local_experts": 9, "num_experts_per_tok": 3}),
    ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 5}),
    (
        "llama",
        {"rope_parameters": LLAMA3_ROPE},
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
]


def make_student(model_type="llama", dtype=torch.float32, options=None, **overrides):
    """An online student, its SubLNs moved off one."""
    torch.manual_seed(5)
    student = apply_bitnet(tiny_model(model_type, **overrides).to(dtype), BitNetConfig(**(options or {})))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "rms_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return student.eval()


def open_student(folder, head="causal_lm"):
    return Student(AutoConfig.from_pretrained(folder), sorted(map(str, folder.glob("*.safetensors"))), head)


def assert_close(logits, expected, tolerance=1e-4):
    """Equal but for activations on the border between two integers, which may be rounded either way."""
    assert logits.shape == expected.shape
    difference = (logits - expected).abs() / expected.std()
    assert difference.median() < tolerance, difference.median()
    assert difference.max() < 0.1, difference.max()


def stored_tensors(folder):
    """All tensors of a checkpoint."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def edit_quantization(folder, **options):
    """Change a checkpoint's quantization config."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= options
    file.write_text(json.dumps(config))
