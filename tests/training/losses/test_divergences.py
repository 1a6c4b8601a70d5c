"""The divergences of the logits loss against formulas written out here."""

import math

import pytest
import torch
from test_trainer import batch_of, gradients

from hf_bitdistill.training import DistillationConfig, TopLogits, distillation_token_losses
from hf_bitdistill.training.losses.divergences import ForwardKL, GeneralizedJSD, ReverseKL, make_divergence


def kl(p, q):
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def written_out(name, beta, student, teacher):
    """Of two distributions, `[V]` each."""
    if name == "forward_kl":
        return kl(teacher, student)
    if name == "reverse_kl":
        return kl(student, teacher)
    mixture = [beta * t + (1 - beta) * s for s, t in zip(student, teacher, strict=True)]
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


CASES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9)]


def batch(count=7, width=11, teacher_width=11):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(count, n, generator=generator).double() for n in (width, teacher_width))
    targets = torch.randint(0, min(width, teacher_width), (count,), generator=generator)
    targets[[1, 4]] = -100
    return student.requires_grad_(), teacher, targets


@pytest.mark.parametrize(("name", "beta"), CASES)
@pytest.mark.parametrize(("temperature", "chunk_size"), [(1.0, 2), (1.0, 100), (3.0, 3)])
@pytest.mark.parametrize("widths", [(11, 11), (11, 14), (14, 11)])
def test_value_and_gradient_equal_the_formula(name, beta, temperature, chunk_size, widths):
    student, teacher, targets = batch(7, *widths)
    sums = distillation_token_losses(
        student,
        teacher,
        targets,
        divergence=make_divergence(name, beta),
        temperature=temperature,
        chunk_size=chunk_size,
        vocab_size=11,
    )
    expected, cross_entropy = 0.0, 0.0
    for s, t, label in zip(student, teacher, targets, strict=True):
        if label != -100:
            p, q = ((x[:11] / temperature).softmax(-1) for x in (s, t))
            expected = expected + temperature**2 * written_out(name, beta, p, q)
            cross_entropy = cross_entropy - s.log_softmax(-1)[label]
    torch.testing.assert_close(sums.kl, expected)
    (wanted,) = torch.autograd.grad(0.3 * cross_entropy + 2.0 * expected, student)
    (actual,) = torch.autograd.grad(0.3 * sums.cross_entropy + 2.0 * sums.kl, student)
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(("name", "beta"), CASES)
@pytest.mark.parametrize("k", [3, 11])
def test_most_likely_tokens_and_the_tail_as_one_outcome(name, beta, k):
    student, teacher, targets = batch()
    tau = 2.0
    chosen = targets != -100
    top, ids = (teacher[chosen] / tau).topk(k)
    tail = (teacher[chosen] / tau).scatter(-1, ids, float("-inf")).logsumexp(-1) if k < 11 else None
    # A constant on all of a row's scores means nothing.
    known = TopLogits(ids, top + 5, None if tail is None else tail + 5)
    options = {"divergence": make_divergence(name, beta), "temperature": tau, "chunk_size": 2}
    sums = distillation_token_losses(student, known, targets, **options)
    expected, cross_entropy = 0.0, 0.0
    for row, (s, t, label) in enumerate(zip(student[chosen], teacher[chosen], targets[chosen], strict=True)):
        p, q = ((x / tau).softmax(-1) for x in (s, t))
        outcomes = [[*x[ids[row]], *([1 - x[ids[row]].sum()] if k < 11 else [])] for x in (p, q)]
        expected = expected + tau**2 * written_out(name, beta, *outcomes)
        cross_entropy = cross_entropy - s.log_softmax(-1)[label]
    torch.testing.assert_close(sums.kl, expected)
    (wanted,) = torch.autograd.grad(0.3 * cross_entropy + 2.0 * expected, student)
    (actual,) = torch.autograd.grad(0.3 * sums.cross_entropy + 2.0 * sums.kl, student)
    torch.testing.assert_close(actual, wanted)
    whole = distillation_token_losses(student, teacher, targets, **options).kl
    # Outcomes taken together never tell two distributions further apart.
    assert sums.kl < whole if k < 11 else torch.isclose(sums.kl, whole)


def test_ends_of_the_jsd_are_the_kls():
    student, teacher, targets = batch()

    def value(divergence):
        return distillation_token_losses(student, teacher, targets, divergence=divergence).kl.item()

    forward, reverse = value(ForwardKL()), value(ReverseKL())
    assert value(make_divergence("jsd", 0)) == forward != reverse == value(make_divergence("jsd", 1))
    small = 1e-6
    assert value(GeneralizedJSD(small)) / small == pytest.approx(forward, rel=1e-4)
    assert value(GeneralizedJSD(1 - small)) / small == pytest.approx(reverse, rel=1e-4)
    assert value(GeneralizedJSD(0.5)) <= 25 * math.log(2) * int((targets != -100).sum())
    with pytest.raises(ValueError, match="between 0 and 1"):
        GeneralizedJSD(0.0)
    with pytest.raises(ValueError, match="one of forward_kl, reverse_kl, jsd, got 'tv'"):
        make_divergence("tv")


@pytest.mark.parametrize(("name", "beta"), CASES)
def test_float32_stays_finite_where_probabilities_vanish(name, beta):
    student = torch.tensor([[200.0, 0.0, -200.0], [-200.0, 0.0, 200.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 0.0, 200.0], [200.0, 0.0, -200.0]])
    sums = distillation_token_losses(
        student, teacher, torch.tensor([0, 1]), divergence=make_divergence(name, beta), temperature=1.0
    )
    (gradient,) = torch.autograd.grad(sums.kl, student)
    assert sums.kl.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(("name", "beta"), CASES[1:4])
def test_in_the_trainer(name, beta, make_model, make_trainer, lm_rows):
    student, teacher = make_model(0).eval(), make_model(1)
    options = {"attention_loss_weight": 0, "logits_loss_weight": 2.0, "temperature": 3.0}
    extra = {"jsd_beta": beta} if name == "jsd" else {}
    trainer = make_trainer(student, teacher, lm_rows, logits_divergence=name, **extra, **options)
    loss = trainer.compute_loss(student, batch_of(trainer, lm_rows[:3]))
    cross_entropy, divergence, count = 0.0, 0.0, 0
    for row in lm_rows[:3]:
        ids = torch.tensor([row["input_ids"]])
        s, t = student(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0].detach()
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                cross_entropy = cross_entropy - s[position].log_softmax(-1)[label]
                p, q = ((x[position] / 3).softmax(-1) for x in (s, t))
                divergence = divergence + 9 * written_out(name, beta, p, q)
                count += 1
    expected = (cross_entropy + 2 * divergence) / count
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted, actual = gradients(expected, student), gradients(loss, student)
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(actual[parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_accumulation_does_not_change_the_step(name, make_model, make_trainer, lm_rows):
    """One batch of four or four batches of one, of unequal numbers of labels."""
    logs = []
    for size in (4, 1):
        trainer = make_trainer(
            make_model(0),
            make_model(1),
            lm_rows[:4],
            logits_divergence=name,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=2,
            logging_steps=1,
            attention_loss_weight=0,
        )
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "loss_ce", "loss_logits", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_options_are_checked(tmp_path):
    for match, options in {
        "logits_divergence must be one of": {"logits_divergence": "mse"},
        "jsd_beta must be between 0 and 1, got 1.5": {"logits_divergence": "jsd", "jsd_beta": 1.5},
        "jsd_beta is of logits_divergence='jsd'": {"jsd_beta": 0.1},
    }.items():
        with pytest.raises(ValueError, match=match):
            DistillationConfig(str(tmp_path), use_cpu=True, **options)
