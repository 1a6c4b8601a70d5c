import pytest
import torch

from architectures import random_tokens, rows_in_every_layout, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, calibrate_sub_norm, pack
from hf_bitdistill.nn import SubLN, full_precision


def full_precision_logits(model, tokens):
    with torch.no_grad(), full_precision(model):
        return model.eval()(tokens).logits


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "opt"])
@pytest.mark.parametrize("sub_norm", ["output", "all"])
def test_calibration_brings_the_student_to_its_source(model_type, sub_norm):
    source, tokens = tiny_model(model_type), random_tokens(length=16)
    with torch.no_grad():
        expected = source(tokens).logits
    student = apply_bitnet(tiny_model(model_type), BitNetConfig(sub_norm=sub_norm))
    before = (full_precision_logits(student, tokens) - expected).square().mean()
    calibration = [{"input_ids": random_tokens(batch=4, length=32, seed=seed)} for seed in range(3)]
    assert calibrate_sub_norm(student, calibration) == sum(isinstance(m, SubLN) for m in student.modules())
    after = (full_precision_logits(student, tokens) - expected).square().mean()
    assert after < 0.5 * before


def test_an_expert_that_no_token_reaches_is_like_the_others():
    student = apply_bitnet(tiny_model("qwen3_moe"))
    mlp = student.model.layers[0].mlp
    mlp.gate.weight.data = torch.zeros_like(mlp.gate.weight)  # a tie: always the same two of four
    calibrate_sub_norm(student, [{"input_ids": random_tokens(batch=4, length=32)}])
    weights = [expert.down_proj.rms_norm.weight for expert in mlp.experts]
    unreached = [weight for weight in weights if (weight == weight[0]).all()]
    reached = [weight.mean() for weight in weights if not (weight == weight[0]).all()]
    assert len(unreached) == len(reached) == 2
    assert unreached[0][0].item() == pytest.approx(torch.stack(reached).mean().item(), rel=1e-5)


def test_closed_form_against_least_squares():
    model = apply_bitnet(tiny_model("llama"))
    captured = []
    down = model.model.layers[0].mlp.down_proj
    handle = down.register_forward_hook(lambda _, args, __: captured.append(args[0].detach().reshape(-1, 88)))
    tokens = random_tokens()
    with torch.no_grad(), full_precision(model):
        # The first layer's FFN input depends on the attention SubLN, which calibration bypasses.
        norms = [m for m in model.modules() if isinstance(m, SubLN)]
        bypass = [m.register_forward_hook(lambda _, args, __: args[0]) for m in norms]
        model(tokens)
        for hook in (handle, *bypass):
            hook.remove()
    calibrate_sub_norm(model, [{"input_ids": tokens}])
    x = captured[0].double()
    x_hat = x / (x.square().mean(-1, keepdim=True) + down.rms_norm.eps).sqrt()
    for channel in (0, 5, 87):
        solution = torch.linalg.lstsq(x_hat[:, channel, None], x[:, channel, None]).solution.item()
        assert down.rms_norm.weight[channel].item() == pytest.approx(solution, rel=1e-4)


def test_padding_does_not_count():
    tokens = random_tokens(batch=1, length=8)
    padded = torch.cat([tokens, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    mask = (torch.arange(13) < 8).long()[None]
    weights = []
    for batch in ({"input_ids": tokens}, {"input_ids": padded, "attention_mask": mask}):
        model = apply_bitnet(tiny_model("llama"))
        calibrate_sub_norm(model, [batch])
        weights.append(model.model.layers[1].mlp.down_proj.rms_norm.weight.clone())
    torch.testing.assert_close(*weights)


def test_no_batches_and_no_norms():
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_sub_norm(apply_bitnet(tiny_model("llama")), [])
    assert calibrate_sub_norm(apply_bitnet(tiny_model("llama"), BitNetConfig(sub_norm="none")), []) == 0


def test_mode_is_restored():
    model = apply_bitnet(tiny_model("llama")).train()
    calibrate_sub_norm(model, [{"input_ids": random_tokens()}])
    assert model.training and model.model.layers[0].mlp.down_proj.quantize


def test_a_packed_student_is_not_calibrated():
    with pytest.raises(ValueError, match="packed"):
        calibrate_sub_norm(pack(apply_bitnet(tiny_model("llama"))), [{"input_ids": random_tokens()}])


# Absolute positions: counted from the first real token.
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_layouts_of_a_batch(model_type):
    weights = []
    for batch in rows_in_every_layout():
        student = apply_bitnet(tiny_model(model_type))
        calibrate_sub_norm(student, [batch])
        weights.append([module.weight for module in student.modules() if isinstance(module, SubLN)])
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-5, atol=1e-6)


def test_batches_that_do_not_fit():
    student = apply_bitnet(tiny_model("llama"))
    with pytest.raises(ValueError, match=r"example 1 of the batch: token 2 is 96, and the embedding has 96 rows"):
        calibrate_sub_norm(student, [{"input_ids": torch.tensor([[3, 4, 5], [3, 4, 96]])}])
    with pytest.raises(ValueError, match=r"example 0 of the batch has 65 tokens and the model's context is 64"):
        calibrate_sub_norm(student, [{"input_ids": random_tokens(1, 65)}])
    packed = rows_in_every_layout()[-1]
    with pytest.raises(
        ValueError, match=r"the model, OPTForCausalLM .* does not keep the documents of a packed batch apart"
    ):
        calibrate_sub_norm(apply_bitnet(tiny_model("opt")), [packed])
