"""Products with what a checkpoint stores: the kernels of CPUs beside what every other device computes."""

import gc

import pytest
import torch
import torch.nn.functional as F

from hf_bitdistill import ops
from hf_bitdistill.ops.backends import cpu, default
from hf_bitdistill.ops.operators import has_kernel, implement
from hf_bitdistill.quantization import (
    dequantize_table,
    effective_weight,
    pack_ternary,
    quantize_table,
    ternarize,
    ternary_linear,
)
from hf_bitdistill.quantization import ternary as reference


library = torch.ops.hf_bitdistill
GROUP = 64
GRANULARITIES = [("tensor", None), ("row", None), ("group", GROUP)]


def weights(granularity, rows=22, columns=150, seed=0):
    """Codes, what is stored of them (no multiple of 4 rows, no multiple of a group's columns), scales."""
    latent = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, scale = ternarize(latent, granularity, GROUP if granularity == "group" else None)
    return codes, pack_ternary(codes), scale


def inputs(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
def test_ternary_linear(backend, granularity, group_size, dtype):
    codes, weight, scale = weights(granularity)
    x, bias = inputs(2, 3, 150).to(dtype), inputs(22, seed=2)
    arguments = (x, weight, scale, 22, bias, group_size)
    expected = ternary_linear(x, codes, scale, bias, group_size=group_size)
    assert expected.dtype == dtype
    assert torch.equal(library.ternary_linear(*arguments), expected)
    assert torch.equal(default.ternary_linear(*arguments), expected)
    assert torch.equal(ops.stored_ternary_linear(*arguments[:5], group_size=group_size), expected)
    # The result of a float32 input may be asked for in another dtype, and is rounded once.
    wide = library.ternary_linear(x.float(), *arguments[1:], 8, torch.bfloat16)
    assert torch.equal(wide, ternary_linear(x.float(), codes, scale, bias, group_size=group_size).bfloat16())


def test_activations_in_floats():
    codes, weight, scale = weights("row")
    x = inputs(3, 150)
    expected = ternary_linear(x, codes, scale, activation_bits=None)
    assert torch.equal(library.ternary_linear(x, weight, scale, 22, None, None, None), expected)
    assert not torch.equal(library.ternary_linear(x, weight, scale, 22), expected)


@pytest.mark.parametrize("tokens", [(1,), (2, 3)])
def test_groups_at_once(tokens):
    """As accelerators compute few tokens: the same products, summed in another order."""
    codes, _, scale = weights("group")
    x = inputs(*tokens, 150)
    arguments = (codes, scale, GROUP, torch.float32)
    result = reference._all_groups(x, *arguments).view(*tokens, 22)
    torch.testing.assert_close(result, reference._group_by_group(x, *arguments))


@pytest.mark.parametrize("bits", [8, 4])
def test_tables(backend, bits, monkeypatch):
    table = inputs(40, 70, seed=3)
    codes, scale = quantize_table(table, bits)
    index, x, bias = torch.tensor([[0, 39], [7, 7]]), inputs(2, 3, 70), inputs(40, seed=4)
    rows = dequantize_table(codes, scale, 70)[index]
    assert torch.equal(library.table_embedding(index, codes, scale, 70), rows)
    assert torch.equal(default.table_embedding(index, codes, scale, 70), rows)
    monkeypatch.setattr(default, "TABLE_ROWS", 16)
    y = library.table_linear(x, codes, scale, bias)
    assert torch.equal(y, ops.packed_linear(x, ops.pack_codes(codes, scale, 70), 40, bias))
    torch.testing.assert_close(default.table_linear(x, codes, scale, bias), y)
    for compute in (library.table_embedding, default.table_embedding):
        with pytest.raises(IndexError, match=r"token id 40 at \[1\]"):
            compute(torch.tensor([3, 40]), codes, scale, 70)


@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
def test_gradients(granularity, group_size):
    codes, weight, scale = weights(granularity)
    dense = effective_weight(codes, scale, group_size)
    x, bias = inputs(2, 3, 150).requires_grad_(), inputs(22, seed=2).requires_grad_()
    grad = inputs(2, 3, 22, seed=5)
    expected = torch.autograd.grad(F.linear(x, dense, bias), (x, bias), grad)
    for compute in (library.ternary_linear, lambda *a: ops.stored_ternary_linear(*a[:5], group_size=a[5])):
        got = torch.autograd.grad(compute(x, weight, scale, 22, bias, group_size), (x, bias), grad)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_of_a_table(bits, monkeypatch):
    monkeypatch.setattr("hf_bitdistill.ops.operators.TABLE_ROWS", 16)
    codes, scale = quantize_table(inputs(40, 70, seed=3), bits)
    x, bias = inputs(2, 3, 70).requires_grad_(), inputs(40, seed=4).requires_grad_()
    grad = inputs(2, 3, 40, seed=5)
    expected = torch.autograd.grad(F.linear(x, dequantize_table(codes, scale, 70), bias), (x, bias), grad)
    for compute in (library.table_linear, ops.stored_table_linear):
        torch.testing.assert_close(torch.autograd.grad(compute(x, codes, scale, bias), (x, bias), grad), expected)


def test_opcheck():
    check = torch.library.opcheck
    x = inputs(3, 150)
    for granularity, group_size in GRANULARITIES:
        _, weight, scale = weights(granularity)
        check(library.ternary_linear.default, (x, weight, scale, 22, None, group_size))
    bias = torch.rand(22, requires_grad=True)
    check(library.ternary_linear.default, (x.requires_grad_(), weight, scale, 22, bias, GROUP))
    check(library.ternary_linear.default, (x.detach(), weight, scale, 22, None, GROUP, None, torch.bfloat16))
    for bits in (8, 4):
        codes, scale = quantize_table(inputs(40, 70, seed=3), bits)
        check(library.table_linear.default, (inputs(2, 70).requires_grad_(), codes, scale, torch.rand(40)))
        check(library.table_embedding.default, (torch.tensor([[1, 2]]), codes, scale, 70))


def test_shapes_without_data():
    _, weight, scale = weights("row")
    codes, table_scale = (tensor.to("meta") for tensor in quantize_table(inputs(40, 70), 4))
    x = torch.empty(2, 3, 150, device="meta", dtype=torch.bfloat16)
    y = ops.stored_ternary_linear(x, weight.to("meta"), scale.to("meta"), 22)
    assert (y.device.type, y.shape, y.dtype) == ("meta", (2, 3, 22), torch.bfloat16)
    y = ops.stored_table_linear(x[..., :70], codes, table_scale)
    assert (y.device.type, y.shape, y.dtype) == ("meta", (2, 3, 40), torch.bfloat16)
    y = ops.stored_table_embedding(torch.empty(2, 5, device="meta", dtype=torch.int64), codes, table_scale, 70)
    assert (y.shape, y.dtype) == ((2, 5, 70), torch.float32)


def test_every_device_computes():
    kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    for name in ("ternary_linear", "table_linear", "table_embedding"):
        assert all(kernel(f"hf_bitdistill::{name}", key) for key in ("CPU", "CUDA", "XPU", "MPS"))
        assert has_kernel(name, torch.device("cpu")) and not has_kernel(name, torch.device("cuda"))


def test_a_device_with_a_kernel_of_its_own(monkeypatch):
    """What a new file in `ops/backends` does. "XLA" is nobody's device here."""
    monkeypatch.setattr("hf_bitdistill.ops.operators._implemented", set())
    implement("ternary_linear", "XLA")(default.ternary_linear)
    assert has_kernel("ternary_linear", torch.device("xla"))
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hf_bitdistill::ternary_linear", "XLA")


def test_layouts_follow_their_weights():
    gc.collect()
    before = len(cpu._layouts)
    codes, weight, scale = weights("row")
    x = inputs(3, 150)
    first = library.ternary_linear(x, weight, scale, 22)
    kept = cpu._layouts[weight][1]
    library.ternary_linear(x, weight, scale, 22)
    assert cpu._layouts[weight][1] is kept and len(cpu._layouts) == before + 1
    weight.copy_(pack_ternary(-codes))
    assert torch.equal(library.ternary_linear(x, weight, scale, 22), -first)
    scale.mul_(2)
    assert torch.equal(library.ternary_linear(x, weight, scale, 22), -first * 2)
    del weight, kept
    assert len(cpu._layouts) == before
