"""Packed models as programs of `torch.export`: equal results for every batch and length, also in another process."""

import sys

import pytest
import torch
from torch.export import Dim

import warm
from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack


def packed_model(table_bits, dtype=torch.float32, granularity="row", model_type="llama"):
    student = apply_bitnet(tiny_model(model_type, num_hidden_layers=1), BitNetConfig(weight_granularity=granularity))
    return pack(student, table_bits=table_bits).eval().to(dtype)


def exported(model, strict=False):
    arguments = {"input_ids": random_tokens(length=11), "use_cache": False}
    dynamic = {"input_ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "use_cache": None}
    with torch.no_grad():
        return torch.export.export(model, (), arguments, dynamic_shapes=dynamic, strict=strict)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("hf_bitdistill.")}


@pytest.mark.parametrize(
    ("table_bits", "dtype", "granularity", "strict"),
    [(8, torch.float32, "row", False), (4, torch.float32, "tensor", False), (32, torch.bfloat16, "group", True)],
)
@torch.no_grad()
def test_a_program_computes_what_its_model_does(table_bits, dtype, granularity, strict):
    model = packed_model(table_bits, dtype, granularity)
    program = exported(model, strict)
    tables = set() if table_bits == 32 else {f"hf_bitdistill.table_{name}.default" for name in ("linear", "embedding")}
    assert operators(program) == {"hf_bitdistill.ternary_linear.default"} | tables
    forward = program.module()
    for batch, length in ((1, 2), (3, 17)):
        tokens = random_tokens(length=length).repeat(batch, 1)
        expected = model(input_ids=tokens, use_cache=False).logits
        assert expected.dtype == dtype
        assert torch.equal(forward(input_ids=tokens, use_cache=False).logits, expected)


@torch.no_grad()
def test_experts():
    """Which tokens an expert has is not known before the program runs; an expert may have none."""
    model = packed_model(8, model_type="qwen3_moe")
    forward = exported(model).module()
    for length in (1, 12):
        tokens = random_tokens(length=length)[:1]
        expected = model(input_ids=tokens, use_cache=False).logits
        assert torch.equal(forward(input_ids=tokens, use_cache=False).logits, expected)


@torch.no_grad()
def test_a_program_holds_packed_weights_alone():
    model = packed_model(8)
    model(input_ids=random_tokens(length=3))  # makes layouts of the kernels
    program = exported(model)
    stored = {name.replace(".table.", "."): tensor.dtype for name, tensor in program.state_dict.items()}
    assert stored == {name: tensor.dtype for name, tensor in model.state_dict().items()}
    # What is constant besides is small: frequencies and the like.
    assert all(not isinstance(value, torch.Tensor) or value.numel() < 64 for value in program.constants.values())


@torch.no_grad()
def test_a_saved_program_in_another_process(tmp_path):
    model = packed_model(8)
    torch.export.save(exported(model), tmp_path / "model.pt2")
    tokens = random_tokens(length=7)
    torch.save({"tokens": tokens, "logits": model(input_ids=tokens, use_cache=False).logits}, tmp_path / "expected.pt")
    code = f"""
import torch, hf_bitdistill
expected = torch.load({str(tmp_path / "expected.pt")!r})
program = torch.export.load({str(tmp_path / "model.pt2")!r}).module()
print(torch.equal(program(input_ids=expected["tokens"], use_cache=False).logits, expected["logits"]))
"""
    result = warm.run([sys.executable, "-c", code])
    assert result.stdout.strip().endswith("True"), result.stderr
