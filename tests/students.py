"""Tiny students and their checkpoints, for the tests of the native decoder."""

import torch
from transformers import AutoConfig

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.decoder import Student


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
