import math
import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from hf_bitdistill import ops
from hf_bitdistill.ops.kernel_layout import read_header


def storage(codes):
    """Ternary values as stored on disk."""
    rows, cols = codes.shape
    stride = math.ceil(rows / 4)
    fields = torch.zeros((4 * stride, cols), dtype=torch.uint8)
    fields[:rows] = (codes + 1).to(torch.uint8)
    fields = fields.view(4, stride, cols)
    return fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6


def make(kind, rows, cols, generator):
    """Values `[rows, cols]`, scales `[rows, groups]` (or `[1, 1]`), columns a group, packed weight."""

    def scales(*shape):
        return torch.rand(shape, generator=generator) + 0.1

    if kind == "int8":
        values = torch.randint(-127, 128, (rows, cols), generator=generator, dtype=torch.int8)
        scale = scales(rows, 1)
        return values, scale, cols, ops.int8_pack(values, scale.view(-1))
    if kind == "int4":
        values = torch.randint(-8, 8, (rows, cols), generator=generator, dtype=torch.int8)
        codes = F.pad((values + 8).to(torch.uint8), (0, cols % 2))
        scale = scales(rows, math.ceil(cols / 32)).half()
        return values, scale.float(), 32, ops.int4_pack(codes[:, ::2] | codes[:, 1::2] << 4, scale, cols)
    values = torch.randint(-1, 2, (rows, cols), generator=generator, dtype=torch.int8)
    group = {"tensor": 0, "row": 0, "group64": 64, "group128": 128, "dense": 0, "dense-row": 0}[kind]
    scale = scales(1, 1) if kind in ("tensor", "dense") else scales(rows, math.ceil(cols / group) if group else 1)
    flat = scale if group else scale.view(-1)
    # (Whatever is faster here.)
    with mock.patch.dict(os.environ, HF_BITDISTILL_DENSE="1" if kind.startswith("dense") else "0"):
        packed = ops.ternary_pack(storage(values), flat, rows, group)
    return values, scale, group or cols, packed


KINDS = ["tensor", "row", "group64", "group128", "int8", "int4", "dense", "dense-row"]
SHAPES = [(1, 1), (3, 5), (17, 33), (576, 1536), (100, 4095), (64, 128), (1000, 576)]


def expected_sums(values, x_q, group):
    parts = [
        x_q[:, i : i + group].long() @ values[:, i : i + group].long().T for i in range(0, values.shape[1], group)
    ]
    return torch.stack(parts, dim=-1).int()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_sums_are_exact(backend, kind, rows, cols):
    generator = torch.Generator().manual_seed(rows * 10007 + cols)
    values, _, group, packed = make(kind, rows, cols, generator)
    for tokens in (1, 2, 11, 65):
        x_q = torch.randint(-128, 128, (tokens, cols), generator=generator, dtype=torch.int8)
        acc = ops.packed_matmul_int32(x_q, packed, rows, math.ceil(cols / group))
        assert acc.dtype == torch.int32
        assert torch.equal(acc, expected_sums(values, x_q, group))


@pytest.mark.parametrize("kind", KINDS)
def test_linear_matches_the_formula(backend, kind):
    generator = torch.Generator().manual_seed(1)
    rows, cols = 50, 200
    values, scale, group, packed = make(kind, rows, cols, generator)
    x = torch.randn(3, 7, cols, generator=generator)
    bias, norm = torch.randn(rows, generator=generator), torch.rand(cols, generator=generator) + 0.5
    y = ops.packed_linear(x, packed, rows, bias, norm, 1e-5)
    h = F.rms_norm(x.double(), (cols,), norm.double(), 1e-5)
    s = 127 / h.abs().amax(-1, keepdim=True)
    dense = values.double() * scale.double().repeat_interleave(group, dim=1)[:, :cols].expand(rows, cols)
    torch.testing.assert_close(y.double(), ((h * s).round() / s) @ dense.T + bias.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_native_equals_torch_bit_for_bit(library, monkeypatch, kind):
    generator = torch.Generator().manual_seed(2)
    for rows, cols in [(33, 70), (64, 257)]:
        _, _, _, packed = make(kind, rows, cols, generator)
        x = torch.randn(9, cols, generator=generator) * torch.logspace(-6, 6, 9)[:, None]
        x[4, 3] = math.nan
        x[5, 2] = -math.inf
        bias = torch.randn(rows, generator=generator)
        results = {}
        for isa in library.supported_isas:
            library.set_isa(isa)
            results[isa] = ops.packed_linear(x, packed, rows, bias)
        with monkeypatch.context() as patch:
            patch.setattr(ops.binding, "library", lambda: None)
            results["torch"] = ops.packed_linear(x, packed, rows, bias)
            index = torch.tensor([0, rows - 1])
            rows_torch = ops.packed_embedding(index, packed, cols)
        assert torch.equal(rows_torch, ops.packed_embedding(index, packed, cols))
        for name, y in results.items():
            assert torch.equal(y.isnan().any(-1), torch.isin(torch.arange(9), torch.tensor([4, 5]))), name
            assert torch.equal(y.nan_to_num(), results["torch"].nan_to_num()), name


@pytest.mark.parametrize("kind", KINDS[:-2])  # (dense ones are made by the native library only)
def test_packed_form_is_the_same(library, monkeypatch, kind):
    packed = {}
    for name in ("native", "torch"):
        with monkeypatch.context() as patch:
            if name == "torch":
                patch.setattr(ops.binding, "library", lambda: None)
            packed[name] = make(kind, 45, 150, torch.Generator().manual_seed(3))[3]
    assert torch.equal(packed["native"], packed["torch"])


@pytest.mark.usefixtures("library")
def test_a_dense_weight_is_a_fifth_smaller():
    sizes = {kind: make(kind, 64, 4000, torch.Generator().manual_seed(3))[3].numel() for kind in ("tensor", "row")}
    dense = {
        kind: make(kind, 64, 4000, torch.Generator().manual_seed(3))[3].numel() for kind in ("dense", "dense-row")
    }
    assert sizes["tensor"] - dense["dense"] == sizes["row"] - dense["dense-row"] == 64 * 4000 // 20
    # Nothing is gained where a group of columns shares a scale, or columns are few.
    for group, columns in ((128, 256), (0, 64)):
        values = torch.randint(-1, 2, (16, columns), generator=torch.Generator().manual_seed(4), dtype=torch.int8)
        scale = torch.ones(16, columns // group) if group else torch.ones(16)
        packed = {}
        for said in "01":
            with mock.patch.dict(os.environ, HF_BITDISTILL_DENSE=said):
                packed[said] = ops.ternary_pack(storage(values), scale, 16, group)
        assert torch.equal(packed["0"], packed["1"])


@pytest.mark.parametrize("said", [None, "0", "1"])
def test_small_matrices_are_dense_only_where_it_is_said(library, monkeypatch, said):
    monkeypatch.delenv("HF_BITDISTILL_DENSE", raising=False)
    if said is not None:
        monkeypatch.setenv("HF_BITDISTILL_DENSE", said)
    asked = []
    monkeypatch.setattr(library, "call", lambda name, fast: asked.append(name))
    assert library.packs_densely(512, 511) is (said == "1") and not asked
    assert library.packs_densely(512, 512) is (said == "1")
    assert asked == ([] if said else ["ternary_dense_is_fast"])


def test_activations_match_torch_division(backend):
    """`127 / max` as torch evaluates it, on which training and inference must agree."""
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(4))
    x_q, s = ops.quantize_activations(x)
    reference = 127 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    assert torch.equal(s[:, None], reference)
    assert torch.equal(x_q.float(), (x * reference).round().clamp(-128, 127))
    half_q, _ = ops.quantize_activations(x.bfloat16())
    assert torch.equal(half_q, ops.quantize_activations(x.bfloat16().float())[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_shape_are_kept(backend, dtype):
    packed = make("row", 20, 40, torch.Generator().manual_seed(5))[3]
    for shape in [(40,), (1, 40), (2, 3, 40), (0, 40)]:
        y = ops.packed_linear(torch.ones(shape, dtype=dtype), packed, 20, torch.ones(20, dtype=dtype))
        assert y.shape == (*shape[:-1], 20) and y.dtype == dtype
    strided = torch.randn(40, 6).to(dtype).T
    assert torch.equal(ops.packed_linear(strided, packed, 20), ops.packed_linear(strided.contiguous(), packed, 20))


def test_wrong_arguments_are_refused(backend):
    values = torch.ones((20, 40), dtype=torch.int8)
    packed = ops.ternary_pack(storage(values), torch.ones(1), 20)
    error = (ValueError, RuntimeError)
    for call in (
        lambda: ops.packed_linear(torch.ones(2, 41), packed, 20),
        lambda: ops.packed_linear(torch.ones(2, 40), packed, 21),
        lambda: ops.packed_linear(torch.ones(2, 40), packed[:-1], 20),
        lambda: ops.packed_linear(torch.ones(2, 40), torch.zeros_like(packed), 20),
        lambda: ops.ternary_pack(storage(values) | 3, torch.ones(1), 20),
        lambda: ops.ternary_pack(storage(values), torch.tensor([math.inf]), 20),
        lambda: ops.ternary_pack(storage(values), torch.ones(7), 20),
        lambda: ops.int8_pack(torch.full((4, 4), -128, dtype=torch.int8), torch.ones(4)),
        lambda: ops.int4_pack(torch.zeros((4, 16), dtype=torch.uint8), torch.ones((4, 1)), 32),  # scales not float16
    ):
        with pytest.raises(error):
            call()
    with pytest.raises(IndexError, match=r"token id 20 at \[0\]"):
        ops.packed_embedding(torch.tensor([20]), packed, 40)


def test_gradient_is_straight_through(backend):
    generator = torch.Generator().manual_seed(6)
    _, _, _, packed = make("row", 20, 40, generator)
    dense = ops.packed_embedding(torch.arange(20), packed, 40)
    x = torch.randn(3, 40, generator=generator, requires_grad=True)
    bias = torch.zeros(20, requires_grad=True)
    norm = torch.rand(40, generator=generator).requires_grad_()
    grad = torch.randn(3, 20, generator=generator)
    ops.packed_linear(x, packed, 20, bias, norm, 1e-6).backward(grad)
    got = [x.grad, bias.grad, norm.grad]
    expected = torch.autograd.grad(F.linear(F.rms_norm(x, (40,), norm, 1e-6), dense, bias), [x, bias, norm], grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    # Without what has a default: torch leaves it out of the call.
    plain = torch.autograd.grad(ops.packed_linear(x, packed, 20), x, grad)[0]
    torch.testing.assert_close(plain, grad @ dense)
    torch.testing.assert_close(torch.autograd.grad(ops.packed_linear(x, packed, 20, None), x, grad)[0], plain)


@pytest.mark.parametrize("dense", ["0", "1"])
def test_opcheck(backend, monkeypatch, dense):
    monkeypatch.setenv("HF_BITDISTILL_DENSE", dense)
    generator = torch.Generator().manual_seed(7)
    values, _, _, packed = make("row", 20, 70, generator)
    x = torch.randn(3, 70, generator=generator)
    library = torch.ops.hf_bitdistill
    check = torch.library.opcheck
    stored = storage(values)
    check(library.ternary_pack.default, (stored, torch.rand(20), 20))
    check(library.ternary_pack.default, (stored, torch.rand(20, 2), 20, 64))
    check(library.ternary_pack.default, (stored, torch.rand(1), 20))
    wide = torch.randint(-1, 2, (20, 16 * 7 + 3), dtype=torch.int8)
    check(library.ternary_pack.default, (storage(wide), torch.rand(1), 20))
    check(library.int8_pack.default, (values, torch.rand(20)))
    check(library.int4_pack.default, (torch.zeros((20, 35), dtype=torch.uint8), torch.rand(20, 3).half(), 70))
    check(library.packed_linear.default, (x, packed, 20))
    check(
        library.packed_linear.default, (x.clone().requires_grad_(), packed, 20, torch.rand(20), torch.rand(70), 1e-6)
    )
    check(library.packed_embedding.default, (torch.tensor([1, 2]), packed, 70))
    for kind in ("int8", "int4"):
        table = make(kind, 20, 70, generator)[3]
        check(library.packed_embedding.default, (torch.tensor([[1, 2], [0, 19]]), table, 70))
        check(library.packed_linear.default, (x.bfloat16(), table, 20))
    check(library.quantize_activations.default, (x, torch.rand(70), 1e-6))
    check(library.packed_matmul_int32.default, (torch.ones((2, 70), dtype=torch.int8), packed, 20, 1))


def test_compile(backend):
    packed = make("row", 20, 70, torch.Generator().manual_seed(8))[3]

    def layer(x):
        return torch.relu(ops.packed_linear(x * 2, packed, 20)) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for tokens in (1, 5, 9):
            x = torch.randn(tokens, 70)
            assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(backend, context):
    values, _, _, packed = make("row", 20, 70, torch.Generator().manual_seed(9))
    x = torch.randn(3, 70, requires_grad=True)
    with context():
        y = ops.packed_linear(x, packed, 20)
        assert not y.requires_grad
        assert torch.equal(ops.packed_embedding(torch.tensor([3]), packed, 70)[0] != 0, values[3] != 0)
        x_q, _ = ops.quantize_activations(x)
        assert torch.equal(ops.packed_matmul_int32(x_q, packed, 20, 1)[..., 0], (x_q.int() @ values.int().T))
        assert torch.equal(ops.int8_pack(values, torch.ones(20)), ops.int8_pack(values.clone(), torch.ones(20)))
    assert torch.equal(y, ops.packed_linear(x.detach(), packed, 20))


@pytest.mark.parametrize("native", [True, False])
def test_scales_of_int4_are_float16(monkeypatch, native):
    """As checkpoints have them, and no other: the layout says so by its format."""
    if not native:
        monkeypatch.setattr("hf_bitdistill.ops.binding.library", lambda: None)
    codes = torch.full((20, 35), 0x88, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"int4 scales are float16, not torch\.float32"):
        ops.int4_pack(codes, torch.rand(20, 3), 70)
    packed = ops.int4_pack(codes, torch.rand(20, 3).half(), 70)
    assert read_header(packed).scale_dtype == torch.float16
