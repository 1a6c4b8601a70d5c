"""The losses against formulas written out here, loop by loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_bitdistill.training import (
    attention_relation_loss,
    distillation_token_losses,
    hidden_state_loss,
    largest_relation_heads,
    regroup_heads,
    relation_divisor,
    shift_labels,
)
from hf_bitdistill.training.losses import token_losses


torch.set_num_threads(1)


def naive_token_losses(student, teacher, targets, temperature):
    cross_entropy, kl, count = 0.0, 0.0, 0
    for s, t, target in zip(student.flatten(0, -2), teacher.flatten(0, -2), targets.flatten(), strict=True):
        if target == -100:
            continue
        p = (s / temperature).exp() / (s / temperature).exp().sum()
        q = (t / temperature).exp() / (t / temperature).exp().sum()
        cross_entropy = cross_entropy - torch.log(s.exp() / s.exp().sum())[target]
        kl = kl + temperature**2 * (q * torch.log(q / p)).sum()
        count += 1
    return cross_entropy, kl, count


def token_batch(dtype=torch.float64, width=13, teacher_width=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 7, width, generator=generator, dtype=dtype).mul_(2).requires_grad_()
    teacher = torch.randn(2, 7, teacher_width, generator=generator, dtype=dtype).mul_(2)
    targets = torch.randint(0, 13, (2, 7), generator=generator)
    targets[0, :3] = -100
    targets[1, 5:] = -100
    return student, teacher, targets


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 9, 1000])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_token_losses_and_gradients_equal_the_loop(chunk_size, temperature):
    student, teacher, targets = token_batch()
    sums = distillation_token_losses(student, teacher, targets, temperature=temperature, chunk_size=chunk_size)
    cross_entropy, kl, count = naive_token_losses(student, teacher, targets, temperature)
    assert sums.count == count == 9
    torch.testing.assert_close(sums.cross_entropy, cross_entropy)
    torch.testing.assert_close(sums.kl, kl)
    (expected,) = torch.autograd.grad(0.3 * cross_entropy + 2.0 * kl, student)
    (actual,) = torch.autograd.grad(0.3 * sums.cross_entropy + 2.0 * sums.kl, student)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("elements", "chunk"), [(13, 1), (2 * 13, 2), (1, 1)])
def test_the_default_chunk_fits_a_cache(monkeypatch, elements, chunk):
    student, teacher, targets = token_batch()
    expected = distillation_token_losses(student, teacher, targets, chunk_size=1000)
    sizes = []
    real = F.kl_div

    def watched(student_chunk, *args, **kwargs):
        sizes.append(len(student_chunk))
        return real(student_chunk, *args, **kwargs)

    monkeypatch.setattr(F, "kl_div", watched)
    monkeypatch.setattr(token_losses, "_CPU_CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(distillation_token_losses(student, teacher, targets), expected)
    assert sum(sizes) == expected.count and max(sizes) == chunk


def test_token_losses_pass_gradcheck():
    student, teacher, targets = token_batch(width=5, teacher_width=4)
    targets = targets.clamp(max=4)

    def losses(logits):
        sums = distillation_token_losses(
            logits, teacher, targets, temperature=3.0, chunk_size=4, vocab_size=4, label_smoothing=0.1
        )
        return sums.cross_entropy, sums.kl

    assert torch.autograd.gradcheck(losses, (student,))


def test_cross_entropy_is_torchs_with_smoothing():
    student, _, targets = token_batch()
    for smoothing in (0.0, 0.2):
        sums = distillation_token_losses(student, None, targets, chunk_size=4, label_smoothing=smoothing)
        expected = F.cross_entropy(
            student.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(sums.cross_entropy, expected)
        assert sums.kl == 0
        (actual,) = torch.autograd.grad(sums.cross_entropy, student)
        torch.testing.assert_close(actual, torch.autograd.grad(expected, student)[0])


def test_classification_logits():
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, -100, 1, 1])
    sums = distillation_token_losses(student, teacher, labels, chunk_size=2)
    cross_entropy, kl, count = naive_token_losses(student, teacher, labels, 5.0)
    assert sums.count == count == 4
    torch.testing.assert_close(sums.cross_entropy, cross_entropy)
    torch.testing.assert_close(sums.kl, kl)


def test_different_widths_use_the_shared_columns():
    student, teacher, targets = token_batch(width=16, teacher_width=20)
    with pytest.raises(ValueError, match="16 columns and teacher logits 20"):
        distillation_token_losses(student, teacher, targets)
    sums = distillation_token_losses(student, teacher, targets, vocab_size=13)
    _, kl, _ = naive_token_losses(student[..., :13], teacher[..., :13], targets, 5.0)
    cross_entropy, _, _ = naive_token_losses(student, student, targets, 5.0)
    torch.testing.assert_close(sums.kl, kl)
    torch.testing.assert_close(sums.cross_entropy, cross_entropy)
    with pytest.raises(ValueError, match="vocab_size 17 does not fit"):
        distillation_token_losses(student, teacher, targets, vocab_size=17)


def test_half_precision_logits_are_computed_in_float32():
    student, teacher, targets = token_batch(torch.float32)
    exact = distillation_token_losses(student, teacher, targets)
    half = distillation_token_losses(student.detach().bfloat16().requires_grad_(), teacher.bfloat16(), targets)
    assert half.kl.dtype == half.cross_entropy.dtype == torch.float32
    torch.testing.assert_close(half.kl, exact.kl, rtol=0.02, atol=0)
    rounded = distillation_token_losses(student.detach().bfloat16().float(), teacher.bfloat16().float(), targets)
    torch.testing.assert_close(half.kl, rounded.kl, rtol=1e-6, atol=0)
    torch.testing.assert_close(half.cross_entropy, rounded.cross_entropy, rtol=1e-6, atol=0)


def test_gradient_has_the_dtype_of_the_logits():
    student, teacher, targets = token_batch(torch.bfloat16)
    sums = distillation_token_losses(student, teacher, targets)
    (grad,) = torch.autograd.grad(sums.cross_entropy + sums.kl, student)
    assert grad.dtype == torch.bfloat16
    reference = student.detach().float().requires_grad_()
    cross_entropy, kl, _ = naive_token_losses(reference, teacher.float(), targets, 5.0)
    torch.testing.assert_close(
        grad.float(), torch.autograd.grad(cross_entropy + kl, reference)[0], rtol=0.01, atol=4e-3
    )


def test_nothing_labelled_and_one_token():
    student, teacher, targets = token_batch(torch.float32)
    sums = distillation_token_losses(student, teacher, torch.full_like(targets, -100))
    assert (sums.cross_entropy, sums.kl, sums.count) == (0, 0, 0)
    (grad,) = torch.autograd.grad(sums.cross_entropy + sums.kl, student)
    assert grad.eq(0).all()
    one = distillation_token_losses(student[:1, :1], teacher[:1, :1], targets[1:, :1])
    cross_entropy, kl, _ = naive_token_losses(student[:1, :1], teacher[:1, :1], targets[1:, :1], 5.0)
    torch.testing.assert_close((one.cross_entropy, one.kl), (cross_entropy, kl))


def test_unlabelled_positions_may_hold_anything():
    student, teacher, targets = token_batch(torch.float32)
    clean = distillation_token_losses(student, teacher, targets)
    dirty = student.detach().clone()
    dirty[targets == -100] = math.nan
    dirty.requires_grad_()
    sums = distillation_token_losses(dirty, teacher, targets)
    assert sums.kl == clean.kl and sums.cross_entropy == clean.cross_entropy
    (grad,) = torch.autograd.grad(sums.kl, dirty)
    assert grad.isfinite().all() and grad[targets == -100].eq(0).all()


def test_bad_arguments():
    student, teacher, targets = token_batch()
    with pytest.raises(ValueError, match="temperature"):
        distillation_token_losses(student, teacher, targets, temperature=0)
    with pytest.raises(ValueError, match="chunk_size"):
        distillation_token_losses(student, teacher, targets, chunk_size=0)
    with pytest.raises(ValueError, match="do not fit"):
        distillation_token_losses(student, teacher, targets[:, 1:])
    with pytest.raises(ValueError, match="do not fit"):
        distillation_token_losses(student, teacher[:, 1:], targets)


class _LargestFloat32(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements of any float32 tensor that an operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.numel())
        return out


def test_no_float32_copy_of_the_logits_is_made():
    student = torch.randn(4, 32, 100).bfloat16().requires_grad_()
    teacher = torch.randn(4, 32, 100).bfloat16()
    targets = torch.randint(0, 100, (4, 32))
    with _LargestFloat32() as mode:
        sums = distillation_token_losses(student, teacher, targets, chunk_size=8)
        (sums.cross_entropy + sums.kl).backward()
    assert 0 < mode.largest <= 8 * 100 < student.numel()


def test_shift_labels():
    labels = torch.tensor([[1, 2, 3], [4, -100, 6]])
    assert shift_labels(labels).tolist() == [[2, 3, -100], [-100, 6, -100]]
    assert shift_labels(labels[:, :1]).tolist() == [[-100], [-100]]


# ---- attention relations ----


def naive_relation_loss(teacher, student, mask, heads, normalization, causal):
    """Row by row, from the definition."""
    total, rows = 0.0, 0
    for t_states, s_states in zip(teacher, student, strict=True):
        for b in range(len(mask)):
            valid = mask[b].nonzero().flatten().tolist()
            t_all, s_all = (x[b].transpose(0, 1).flatten(1) for x in (t_states, s_states))  # [T, H * d]
            for a in range(heads):
                logs = []
                for x in (t_all, s_all):
                    d = x.shape[1] // heads
                    v = x[:, a * d : (a + 1) * d]
                    if normalization == "cosine":
                        v = v / v.norm(dim=-1, keepdim=True)
                        logs.append(v @ v.T)
                    else:
                        logs.append(v @ v.T / math.sqrt(d))
                for i in valid:
                    columns = [j for j in valid if not causal or j <= i]
                    p, q = (F.softmax(x[i, columns], dim=-1) for x in logs)
                    total = total + (p * (p / q).log()).sum()
                    rows += 1
    return total, rows // 3


def states(batch, length, shapes, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, length, d, generator=generator, dtype=dtype) for heads, d in shapes)


MASKS = {
    "full": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
    "left padding": [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("normalization", ["cosine", "scaled_dot"])
@pytest.mark.parametrize("causal", [False, True])
def test_relation_loss_equals_the_loop(mask, normalization, causal):
    # Teacher: 6 heads, 2 of keys and values; student: narrower, other heads, other grouping.
    teacher = states(2, 5, [(6, 8), (2, 8), (2, 8)], 0, torch.float32)
    student = tuple(x.requires_grad_() for x in states(2, 5, [(4, 6), (2, 6), (2, 6)], 1, torch.float32))
    mask = torch.tensor(MASKS[mask])
    sums = attention_relation_loss(teacher, student, mask, 4, normalization, causal)
    total, rows = naive_relation_loss(teacher, student, mask, 4, normalization, causal)
    assert sums.rows == rows == mask.sum() * 4
    torch.testing.assert_close(sums.kl, total, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(total, student)
    actual = torch.autograd.grad(sums.kl, student)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_padding_content_does_not_matter():
    teacher, student = (states(1, 5, [(4, 8)] * 3, seed, torch.float32) for seed in (0, 1))
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    sums = attention_relation_loss(teacher, student, mask, 4)
    cut = attention_relation_loss(
        tuple(x[:, :, :3] for x in teacher), tuple(x[:, :, :3] for x in student), mask[:, :3], 4
    )
    torch.testing.assert_close(sums.kl, cut.kl)
    assert sums.rows == cut.rows
    for x in (*teacher, *student):
        x[:, :, 3:] = 1e4
    torch.testing.assert_close(attention_relation_loss(teacher, student, mask, 4).kl, cut.kl)


def test_equal_states_have_no_loss_and_no_gradient():
    teacher = states(2, 4, [(4, 4)] * 3, 0, torch.float32)
    student = tuple(x.clone().requires_grad_() for x in teacher)
    sums = attention_relation_loss(teacher, student, torch.ones(2, 4), 4)
    assert abs(sums.kl.item()) < 1e-6
    for grad in torch.autograd.grad(sums.kl, student):
        assert grad.abs().max() < 1e-6


def test_relation_loss_in_blocks_is_the_same(monkeypatch):
    teacher, student = (states(5, 4, [(4, 4)] * 3, seed, torch.float32) for seed in (0, 1))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    student = tuple(x.requires_grad_() for x in student)
    whole = attention_relation_loss(teacher, student, mask, 4, causal=True)
    expected = torch.autograd.grad(whole.kl, student)
    monkeypatch.setattr("hf_bitdistill.training.losses.relations._RELATION_BLOCK_ELEMENTS", 2 * 4 * 4 * 4)
    blocks = attention_relation_loss(teacher, student, mask, 4, causal=True)
    torch.testing.assert_close(blocks.kl, whole.kl)
    torch.testing.assert_close(torch.autograd.grad(blocks.kl, student), expected)


def test_relation_loss_ignores_autocast_and_takes_half_precision():
    teacher, student = (states(2, 6, [(4, 8)] * 3, seed, torch.float32) for seed in (0, 1))
    mask = torch.ones(2, 6)
    plain = attention_relation_loss(teacher, student, mask, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attention_relation_loss(teacher, student, mask, 4).kl, plain.kl)
    half = attention_relation_loss([x.bfloat16() for x in teacher], [x.bfloat16() for x in student], mask, 4)
    assert half.kl.dtype == torch.float32
    torch.testing.assert_close(half.kl, plain.kl, rtol=0.02, atol=0)


def test_zero_vectors_and_empty_masks_stay_finite():
    teacher = states(2, 3, [(2, 4)] * 3, 0, torch.float32)
    student = tuple(torch.zeros_like(x, requires_grad=True) for x in teacher)
    for mask in (torch.ones(2, 3), torch.zeros(2, 3)):
        sums = attention_relation_loss(teacher, student, mask, 2)
        assert sums.kl.isfinite()
        for grad in torch.autograd.grad(sums.kl, student):
            assert grad.eq(0).all()
    assert (sums.kl, sums.rows) == (0, 0)


def test_a_single_token_has_no_relation_to_learn():
    teacher, student = (states(1, 1, [(2, 4)] * 3, seed, torch.float32) for seed in (0, 1))
    sums = attention_relation_loss(teacher, student, torch.ones(1, 1), 2)
    assert sums.kl == 0 and sums.rows == 2


def test_relation_errors_name_the_widths():
    teacher = states(1, 3, [(4, 8), (2, 8), (2, 8)], 0)
    student = states(1, 3, [(3, 8), (1, 8), (1, 8)], 1)
    with pytest.raises(ValueError, match=r"relation_heads=16 .* teacher Q 32, teacher K 16.* student V 8; 2 would do"):
        attention_relation_loss(teacher, student, torch.ones(1, 3), 16)
    with pytest.raises(ValueError, match="'cosine' or 'scaled_dot'"):
        attention_relation_loss(teacher, student, torch.ones(1, 3), 4, "other")
    with pytest.raises(ValueError, match="do not fit an attention mask"):
        attention_relation_loss(teacher, student, torch.ones(1, 4), 4)


def test_regrouping_and_its_defaults():
    x = torch.arange(24).reshape(1, 2, 3, 4)  # 2 heads of 4
    regrouped = regroup_heads(x, 4)
    assert regrouped.shape == (1, 4, 3, 2)
    assert regrouped[0, :, 1].flatten().tolist() == [*x[0, 0, 1].tolist(), *x[0, 1, 1].tolist()]
    with pytest.raises(ValueError, match="does not divide the width 8"):
        regroup_heads(x, 3)
    assert largest_relation_heads([1024, 2048]) == 32
    assert largest_relation_heads([576, 192]) == 32
    assert largest_relation_heads([576, 64]) == 16  # 32 would leave 2 dimensions
    assert largest_relation_heads([36, 48]) == 6
    assert largest_relation_heads([7, 3]) == 1
    assert relation_divisor("cosine", 2, 32) == 64
    assert relation_divisor("scaled_dot", 2, 32) == 2


def test_hidden_state_loss():
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(2, 5, 8, generator=generator) * scale for scale in (1.0, 1e3)]
    student = [(state * 1.5).bfloat16().requires_grad_() for state in teacher]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    teacher[0][0, 4] = float("nan")  # padding is never read
    loss = hidden_state_loss(teacher, student, mask)
    assert loss.dtype == torch.float32
    # Half too large everywhere, whatever the size of the states: 0.25 a token and layer.
    assert loss.item() == pytest.approx(2 * 8 * 0.25, rel=0.02)
    loss.backward()
    assert all(state.grad[0, 3:].eq(0).all() and state.grad[1].ne(0).any() for state in student)
    empty = hidden_state_loss(teacher, student, torch.zeros(2, 5))
    assert empty.item() == 0.0 and torch.autograd.grad(empty, student[0])[0].eq(0).all()
    with pytest.raises(ValueError, match="set hidden_loss_weight=0"):
        hidden_state_loss([teacher[0]], [student[0][..., :4]], mask)
    with pytest.raises(ValueError, match="1 layers of the student and 2 of the teacher"):
        hidden_state_loss(teacher, student[:1], mask)
