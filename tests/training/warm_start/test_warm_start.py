"""A warm start on tiny random models: it must lower what it trains on and what it does not, and leave a plain student."""

import copy

import pytest
import torch

from architectures import random_tokens, rows_in_every_layout, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, calibrate_sub_norm, pack
from hf_bitdistill.nn import BitLinear
from hf_bitdistill.quantization import ternarize
from hf_bitdistill.training.warm_start import WarmStartConfig, least_squares_warm_start, warm_start
from hf_bitdistill.training.warm_start.relaxation import RelaxedBitLinear, hard_ternary, soft_ternary


BATCHES = [{"input_ids": random_tokens(batch=4, length=32, seed=seed)} for seed in range(10, 26)]
HELD_OUT = random_tokens(batch=8, length=32, seed=99)


def make_student(model_type="llama", layers=2, **options):
    depth = {"n_layer": layers} if model_type == "gpt2" else {"num_hidden_layers": layers}
    teacher = tiny_model(model_type, **depth)
    student = apply_bitnet(copy.deepcopy(teacher), BitNetConfig(**options))
    calibrate_sub_norm(student, BATCHES[:2])
    return teacher, student


@torch.no_grad()
def divergence(teacher, student):
    """Mean squared difference of the held-out logits."""
    return (teacher.eval()(HELD_OUT).logits - student.eval()(HELD_OUT).logits).square().mean().item()


@pytest.mark.parametrize(
    "model_type,options",
    [
        ("llama", {}),
        ("llama", {"weight_granularity": "group", "group_size": 64, "sub_norm": "all"}),
        ("qwen3", {"weight_granularity": "row"}),
        ("gemma3_text", {"activation_bits": None}),
        ("gpt2", {}),
        ("opt", {"sub_norm": "none"}),
    ],
)
def test_it_comes_nearer_to_the_teacher(model_type, options):
    teacher, student = make_student(model_type, **options)
    reference = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    plain = divergence(teacher, student)
    names = [name for name, _ in student.named_modules()]
    report = warm_start(student, teacher, BATCHES, WarmStartConfig(steps_per_window=60, rank=8, learning_rate=1e-2))
    assert [(w.first_layer, w.last_layer) for w in report.windows] == [(0, 1)]
    assert report.windows[0].error_after < 0.7 * report.windows[0].error_before
    assert divergence(teacher, student) < 0.8 * plain
    assert report.calibration_tokens == 16 * 4 * 32 and report.trained_tokens == 60 * 4 * 32
    # A plain student again: the same modules, all trainable, and the teacher is untouched.
    assert [name for name, _ in student.named_modules()] == names
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(parameter, reference[name]) for name, parameter in teacher.named_parameters())
    packed = pack(student, table_bits=32)
    with torch.no_grad():
        assert torch.equal(packed(HELD_OUT).logits, student.eval()(HELD_OUT).logits)


def test_experts():
    """A token's error jumps where another expert is asked for than in the teacher, which no weight of the experts mends."""
    teacher, student = make_student("qwen3_moe")
    plain = divergence(teacher, student)
    report = warm_start(student, teacher, BATCHES, WarmStartConfig(steps_per_window=60, rank=8, learning_rate=1e-2))
    assert report.windows[0].error_after < 0.8 * report.windows[0].error_before
    assert divergence(teacher, student) < 0.8 * plain


def test_windows_slide():
    teacher, student = make_student(layers=5)
    plain = divergence(teacher, student)
    config = WarmStartConfig(window_layers=2, window_stride=1, steps_per_window=30, rank=0, learning_rate=1e-2)
    report = warm_start(student, teacher, BATCHES, config)
    assert [(w.first_layer, w.last_layer) for w in report.windows] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert all(window.error_after < window.error_before for window in report.windows)
    assert divergence(teacher, student) < plain
    assert len(report.windows[0].losses) == 10 and report.to_dict()["config"]["rank"] == 0


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("rank", [0, 4])
def test_folding_gives_the_codes_and_scales_that_were_found(granularity, rank):
    config = BitNetConfig(weight_granularity=granularity, group_size=64, activation_bits=None)
    generator = torch.Generator().manual_seed(0)
    layer = BitLinear(150, 40, config=config)
    stand_in = RelaxedBitLinear(layer, rank, 128, "least_squares", generator)
    with torch.no_grad():
        for parameter in (*stand_in.updates(), *stand_in.factors()):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(3, 150, generator=generator)
        codes, scale = stand_in.normalized().round().clamp(-1, 1), stand_in.weight_scale()
        expected = stand_in(x)  # hard, as nothing set a sharpness
        stand_in.fold()
        folded_codes, folded_scale = layer.ternarize()
        assert torch.equal(folded_codes, codes)
        torch.testing.assert_close(folded_scale, scale, rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_the_start_is_the_student_itself():
    torch.manual_seed(0)
    layer = BitLinear(64, 32)
    stand_in = RelaxedBitLinear(layer, 4, 16, "absmean", torch.Generator())
    codes, scale = ternarize(layer.weight)
    assert torch.equal(stand_in.normalized().round().clamp(-1, 1), codes)
    torch.testing.assert_close(stand_in.weight_scale(), scale)


def test_the_soft_function_hardens():
    u = torch.tensor([-1.2, -0.6, -0.4, 0.0, 0.3, 0.7, 3.0])
    torch.testing.assert_close(soft_ternary(u, 200.0), u.round().clamp(-1, 1))
    assert (soft_ternary(u, 2.0) - u.clamp(-1, 1)).abs().max() < 0.2
    u.requires_grad_()
    hard_ternary(u, 5.0).sum().backward()
    expected, u.grad = u.grad, None
    soft_ternary(u, 5.0).sum().backward()
    torch.testing.assert_close(u.grad, expected)
    config = WarmStartConfig(steps_per_window=10, sharpness=2.0, final_sharpness=20.0)
    steps = [config.sharpness_at(step) for step in range(10)]
    assert steps[0] == 2.0 and steps[7] < 20 and steps[8] is None and steps[9] is None


def test_bfloat16():
    teacher, student = make_student()
    plain = divergence(teacher, student)
    dtypes = set()
    teacher.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    config = WarmStartConfig(steps_per_window=60, rank=8, learning_rate=1e-2, bf16=True)
    report = warm_start(student, teacher, BATCHES, config)
    assert torch.bfloat16 in dtypes
    assert report.windows[0].error_after < 0.7 * report.windows[0].error_before
    assert divergence(teacher, student) < 0.8 * plain
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())


def test_norms_of_a_16_bit_student_are_trained():
    teacher, student = (model.to(torch.bfloat16) for model in make_student())
    before = {name: p.clone() for name, p in student.named_parameters() if p.ndim == 1}
    warm_start(student, teacher, BATCHES, WarmStartConfig(steps_per_window=20, rank=8, norm_learning_rate=1e-3))
    # Steps of 1e-3 near 1 are less than half the distance of two numbers there; their sum is not.
    moved = [not torch.equal(p, before[name]) for name, p in student.named_parameters() if "layernorm" in name]
    assert moved and all(moved)
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in student.parameters())


def test_the_same_arguments_give_the_same_student():
    states = []
    for _ in range(2):
        teacher, student = make_student()
        warm_start(student, teacher, BATCHES[:4], WarmStartConfig(steps_per_window=5, rank=4))
        states.append(student.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_padding_does_not_count():
    teacher, student = make_student()
    tokens = random_tokens(batch=2, length=12)
    padded = {"input_ids": torch.nn.functional.pad(tokens, (0, 4)), "attention_mask": (torch.arange(16) < 12).long()}
    padded["attention_mask"] = padded["attention_mask"].expand(2, -1)
    reports = []
    for batch in ({"input_ids": tokens}, padded):
        own = copy.deepcopy(student)
        reports.append(warm_start(own, teacher, [batch], WarmStartConfig(steps_per_window=1, rank=4)))
    assert reports[0].calibration_tokens == reports[1].calibration_tokens == 24
    assert reports[0].windows[0].error_before == pytest.approx(reports[1].windows[0].error_before, rel=1e-4)


@pytest.mark.parametrize("loss_unit", ["median", "token"])
def test_what_an_error_is_measured_in(loss_unit):
    teacher, student = make_student()
    batch = {"input_ids": BATCHES[0]["input_ids"].clone()}
    batch["input_ids"][:, 0] = 3
    outputs = []
    for model in (teacher, student.eval()):
        with torch.no_grad():
            model.get_input_embeddings().weight[3] *= 100
        with model.model.layers[-1].register_forward_hook(lambda module, args, output: outputs.append(output)):
            model(**batch)
    target, hidden = outputs
    sizes = target.square().mean(dim=-1, keepdim=True).sqrt()
    assert (sizes[:, 0] > 20 * sizes.median()).all()
    unit = sizes.median() if loss_unit == "median" else sizes.maximum(sizes.median())
    expected = torch.nn.functional.huber_loss(hidden / unit, target / unit).item()
    report = warm_start(student, teacher, [batch], WarmStartConfig(steps_per_window=1, rank=4, loss_unit=loss_unit))
    assert report.windows[0].error_before == pytest.approx(expected, rel=1e-4)


def test_least_squares_alone():
    teacher, student = make_student()
    projections = {name: module for name, module in student.named_modules() if isinstance(module, BitLinear)}

    def errors():
        for name, layer in projections.items():
            codes, scale = layer.ternarize()
            yield (teacher.get_submodule(name).weight - codes * scale).square().sum().item()

    plain = list(errors())
    assert least_squares_warm_start(student) == len(projections) == 14
    assert all(after < 0.9 * before for before, after in zip(plain, errors(), strict=True))


def test_a_failure_leaves_the_student_as_it_was(monkeypatch):
    teacher, student = make_student()
    state = copy.deepcopy(student.state_dict())
    monkeypatch.setattr(WarmStartConfig, "rate_share_at", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        warm_start(student, teacher, BATCHES[:1])
    assert not any(isinstance(module, RelaxedBitLinear) for module in student.modules())
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())


def test_refusals():
    teacher, student = make_student()
    with pytest.raises(ValueError, match="at least one batch"):
        warm_start(student, teacher, [])
    with pytest.raises(SurgeryError, match="not an online student"):
        warm_start(teacher, teacher, BATCHES)
    with pytest.raises(SurgeryError, match="not an online student"):
        warm_start(pack(student), teacher, BATCHES)
    with pytest.raises(ValueError, match="full-precision"):
        warm_start(student, student, BATCHES)
    with pytest.raises(ValueError, match="2 layers of width 48, the teacher 3 of 48"):
        warm_start(student, tiny_model("llama", num_hidden_layers=3), BATCHES)
    for option, value in {
        "rank": -1,
        "window_stride": 5,
        "start": "best",
        "loss_unit": "window",
        "hardening_share": 2,
        "sharpness": 0,
    }.items():
        with pytest.raises(ValueError, match=option):
            WarmStartConfig(**{option: value})


def test_layouts_of_a_batch():
    """Padding on the left and packed documents teach what padding on the right does."""
    results = []
    for batch in rows_in_every_layout():
        teacher, student = make_student("gpt2")
        report = warm_start(student, teacher, [batch], WarmStartConfig(steps_per_window=3, rank=4, train_norms=False))
        assert report.calibration_tokens == 34
        results.append([report.windows[0].error_before, *report.windows[0].losses[:1]])
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-3)
    teacher, student = make_student("gpt2")
    with pytest.raises(ValueError, match=r"example 0 of the batch has 65 tokens and the student's context is 64"):
        warm_start(student, teacher, [{"input_ids": random_tokens(1, 65)}])
