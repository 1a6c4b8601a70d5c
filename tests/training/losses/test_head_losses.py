"""Losses taken at the output layer: equal to those of whole logits, over architectures, dtypes, masks and chunks; when they are not taken."""

import pytest
import torch
from test_trainer import batch_of, gradients
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, LlamaForCausalLM

from architectures import random_tokens, tiny_config, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.scale.live_bytes import LiveBytes
from hf_bitdistill.training import DistillationConfig, TopLogits, distillation_token_losses
from hf_bitdistill.training.both_passes import BothPasses
from hf_bitdistill.training.losses import head_losses
from hf_bitdistill.training.losses.divergences import make_divergence
from hf_bitdistill.training.losses.head_losses import HeadPlan, HeadTeacher, TokenWeights, head_token_losses
from hf_bitdistill.training.losses.head_tap import HeadTap
from hf_bitdistill.training.losses.logits_tail import LogitsTail
from hf_bitdistill.training.losses.terms import TERMS, Progress
from hf_bitdistill.training.losses.token_losses import TokenLosses
from hf_bitdistill.training.teacher.teacher_placement import PlacedTeacher
from hf_bitdistill.training.teacher.teacher_scores import TopTeacher


WIDTH, TEACHER_WIDTH, COUNT = 31, 29, 13


def tail_of(logits, tail):
    logits = logits * tail.factor
    return logits if tail.cap is None else tail.cap * torch.tanh(logits / tail.cap)


def head_case(dtype, bias=True):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(COUNT, 8, generator=generator, dtype=dtype).requires_grad_()
    head, teacher = nn.Linear(8, WIDTH, bias=bias, dtype=dtype), nn.Linear(6, TEACHER_WIDTH, dtype=dtype)
    for parameter in (*head.parameters(), *teacher.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    teacher.requires_grad_(False)
    theirs = torch.randn(COUNT, 6, generator=generator, dtype=dtype)
    return states, head, theirs, teacher, torch.randint(WIDTH, (COUNT,), generator=generator)


@pytest.mark.parametrize("tail", [LogitsTail(), LogitsTail(0.25, 3.0)], ids=["plain", "scaled and capped"])
@pytest.mark.parametrize(("product_tokens", "chunk_size"), [(100, 100), (5, 2), (1, 3)])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_losses_and_gradients_are_those_of_whole_logits(tail, product_tokens, chunk_size, divergence):
    states, head, theirs, teacher, labels = head_case(torch.float64)
    weights = TokenWeights(0.7, 2.0)
    options = {"divergence": make_divergence(divergence), "temperature": 2.0, "vocab_size": TEACHER_WIDTH}
    whole = distillation_token_losses(
        tail_of(head(states), tail), tail_of(teacher(theirs), tail), labels, label_smoothing=0.1, **options
    )
    source = HeadTeacher(theirs, teacher, tail, TEACHER_WIDTH, 2.0, torch.float64)
    plan = HeadPlan(torch.float64, tail, weights, product_tokens, chunk_size)
    losses = TokenLosses(source, label_smoothing=0.1, **options)
    cross_entropy, kl, tie = head_token_losses(states, head.weight, head.bias, labels, losses, plan)
    torch.testing.assert_close((cross_entropy, kl), whole[:2])
    assert tie == 0 and tie.requires_grad
    inputs = [states, head.weight, head.bias]
    expected = torch.autograd.grad(3 * (0.7 * whole.cross_entropy + 2.0 * whole.kl), inputs)
    actual = torch.autograd.grad(3 * (0.7 * cross_entropy + 2.0 * kl) + tie, inputs)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("with_tail", [False, True])
def test_cached_top_logits(with_tail):
    states, head, _, _, labels = head_case(torch.float64)
    k = 4 if with_tail else WIDTH
    ids = torch.stack(
        [torch.randperm(WIDTH, generator=torch.Generator().manual_seed(row))[:k] for row in range(COUNT)]
    )
    top = TopLogits(
        ids, torch.randn(COUNT, k, dtype=torch.float64), torch.randn(COUNT).double() if with_tail else None
    )
    whole = distillation_token_losses(head(states), top, labels, temperature=2.0)
    plan = HeadPlan(torch.float64, LogitsTail(), TokenWeights(1.0, 1.0), 5, 2)
    losses = TokenLosses(TopTeacher(top), temperature=2.0, vocab_size=WIDTH)
    *sums, _ = head_token_losses(states, head.weight, head.bias, labels, losses, plan)
    torch.testing.assert_close(tuple(sums), whole[:2])
    inputs = [states, *head.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(sum(sums), inputs), torch.autograd.grad(whole.cross_entropy + whole.kl, inputs)
    )


def test_another_ratio_of_the_losses_does_not_pass_unseen():
    states, head, theirs, teacher, labels = head_case(torch.float32)
    for weights, is_right in (
        (TokenWeights(1.0, 2.0), True),
        (TokenWeights(1.0, 1.0), False),
        (TokenWeights(0.0, 2.0), False),
    ):
        losses = TokenLosses(
            HeadTeacher(theirs, teacher, LogitsTail(), TEACHER_WIDTH, 1.0, torch.float32), vocab_size=TEACHER_WIDTH
        )
        plan = HeadPlan(torch.float32, LogitsTail(), weights, 8, 8)
        cross_entropy, kl, _ = head_token_losses(states, head.weight, head.bias, labels, losses, plan)
        loss = cross_entropy + 2 * kl
        (gradient,) = torch.autograd.grad(loss, states, retain_graph=True)
        assert bool(gradient.isfinite().all()) is is_right and bool(gradient.isnan().all()) is not is_right
        with pytest.raises(RuntimeError, match="once only"):
            torch.autograd.grad(loss, states)


def test_what_is_frozen_or_not_derived_costs_nothing(monkeypatch):
    states, head, _, _, labels = head_case(torch.float32)
    products = []
    monkeypatch.setattr(head_losses, "_add_product", lambda *args: products.append(args))
    plan = HeadPlan(torch.float32, LogitsTail(), TokenWeights(), 8, 8)
    with torch.no_grad():
        head_token_losses(states, head.weight, head.bias, labels, TokenLosses(), plan)
    head_token_losses(states, head.weight.detach(), None, labels, TokenLosses(), plan)
    assert not products
    head_token_losses(states, head.weight, None, labels, TokenLosses(), plan)
    assert len(products) == 2


def test_half_precision_rounds_products_alone():
    """Under autocast: logits in bfloat16, the gradient of a float32 table summed over chunks in float32."""
    states, head, _, _, labels = head_case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        whole = distillation_token_losses(head(states), None, labels)
        plan = HeadPlan(torch.bfloat16, LogitsTail(), TokenWeights(), 5, 2)
        cross_entropy, _, _ = head_token_losses(states, head.weight, head.bias, labels, TokenLosses(), plan)
    torch.testing.assert_close(cross_entropy, whole.cross_entropy, rtol=1e-6, atol=0)
    inputs = [states, *head.parameters()]
    expected = torch.autograd.grad(whole.cross_entropy, inputs)
    actual = torch.autograd.grad(cross_entropy, inputs)
    for mine, wanted, value in zip(actual, expected, inputs, strict=True):
        assert mine.dtype == value.dtype
        torch.testing.assert_close(mine, wanted, rtol=2e-2, atol=2e-2)


# ---- Whole models ----


def both_ways(student, teacher, half=False, **options):
    """Loss, gradients and why not, at the output layers and of whole logits."""
    args = DistillationConfig(
        "unused", use_cpu=True, report_to=[], attention_loss_weight=0.0, ce_loss_weight=0.7, **options
    )
    terms = [kind(args) for kind in TERMS if kind.is_on(args)]
    ids = random_tokens(3, 11)
    targets = torch.full_like(ids, -100)
    targets[0, 3:9], targets[1, 5] = ids[0, 4:10], 7  # no label at all in the last row
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][0, 9:] = 0
    found = []
    for logits in ("none", "labelled"):
        passes = BothPasses(args, "causal_lm", teacher, PlacedTeacher(teacher))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            forwards = passes(student, student, inputs, targets, ids > 0, terms, Progress(), logits)
            totals = [(term, term.sums(forwards)) for term in terms]
            loss = sum(term.weight(Progress()) * sums.total for term, sums in totals if sums and sums.count) / 7
        found.append((loss.detach(), gradients(loss, student), passes.refusal, forwards))
    return found


def assert_equal(found, tolerance):
    (loss, gradient, refusal, forwards), (whole_loss, whole_gradient, _, _) = found
    assert refusal is None and forwards.logits is None
    torch.testing.assert_close(loss, whole_loss, rtol=tolerance, atol=0)
    largest = max(value.abs().max() for value in whole_gradient.values() if value is not None)
    for name, wanted in whole_gradient.items():
        assert (wanted is None) == (gradient[name] is None), name
        if wanted is not None:
            assert (gradient[name] - wanted).abs().max() <= tolerance * (wanted.abs().max() + 1e-2 * largest), name


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "phi", "opt", "qwen3_moe"])
def test_architectures(model_type):
    """Tied and untied tables, a bias, capped logits, a mixture; the student is ternary."""
    student = apply_bitnet(tiny_model(model_type), BitNetConfig())
    assert_equal(both_ways(student, tiny_model(model_type, seed=1), temperature=2.0, label_smoothing_factor=0.1), 2e-6)


def test_scaled_logits():
    options = {**tiny_config("llama").to_dict(), "logit_scale": 0.25}
    options.pop("model_type")
    torch.manual_seed(0)
    student, teacher = CohereForCausalLM(CohereConfig(**options)), tiny_model("llama", seed=1)
    assert_equal(both_ways(student, teacher), 2e-6)


def test_autocast():
    assert_equal(both_ways(tiny_model("llama"), tiny_model("llama", seed=1), half=True), 2e-2)


def test_a_compiled_output_layer():
    """As accelerate's regional compilation leaves it."""
    student = tiny_model("llama")
    student.lm_head = torch.compile(student.lm_head, backend="eager")
    assert_equal(both_ways(student, tiny_model("llama", seed=1)), 2e-6)
    torch._dynamo.reset()


class Louder(LlamaForCausalLM):
    """Its forward does what no key of its config says."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask=attention_mask)
        outputs.logits = outputs.logits * 1.01
        return outputs


class ByHand(LlamaForCausalLM):
    """Multiplies by the table without calling the layer."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        outputs = self.model(input_ids, attention_mask=attention_mask)
        return {"logits": outputs[0] @ self.lm_head.weight.T}


class Reshaping(LlamaForCausalLM):
    """Cannot do with logits of one token."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        states = self.model(input_ids, attention_mask=attention_mask)[0]
        return {"logits": self.lm_head(states).view(*input_ids.shape, -1)}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Louder, "does more than known"), (ByHand, "not called as a module"), (Reshaping, "RuntimeError")],
)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_other_forwards_have_whole_logits(kind, reason, who, caplog):
    torch.manual_seed(0)
    odd, plain = kind(tiny_config("llama", tie_word_embeddings=False)), tiny_model("llama", seed=1)
    pair = (odd, plain) if who == "student" else (plain, odd)
    with caplog.at_level("WARNING"):
        (loss, gradient, refusal, _), (whole_loss, whole_gradient, _, _) = both_ways(*pair)
    assert reason in refusal
    assert loss == whole_loss
    assert all(torch.equal(gradient[name], wanted) for name, wanted in whole_gradient.items())


def test_a_head_that_is_no_plain_layer():
    class Halving(nn.Linear):
        def forward(self, states):
            return super().forward(states) / 2

    model = tiny_model("llama", tie_word_embeddings=False)
    halving = Halving(model.config.hidden_size, model.config.vocab_size, bias=False)
    model.lm_head = halving
    assert "Halving" in HeadTap(model, is_derived=True).refusal
    # Of a teacher any module will do.
    assert_equal(both_ways(tiny_model("llama", seed=1), model), 2e-6)
    model.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size).half()
    with torch.no_grad():
        tap = HeadTap(model, is_derived=True)
        with tap.taking(lambda *_: None):
            model.lm_head(torch.zeros(1, 2, model.config.hidden_size).half())
    assert "float16" in tap.refusal


def test_hooks_are_gone_afterwards():
    model = tiny_model("llama")
    both_ways(model, tiny_model("llama", seed=1))
    assert not model.lm_head._forward_hooks and not model.lm_head._forward_pre_hooks


def test_autocast_keeps_no_copy_of_the_table():
    head = (model := tiny_model("llama")).lm_head
    states, tap, alive = torch.randn(1, 4, head.in_features), HeadTap(model, is_derived=True), []
    with torch.autocast("cpu", torch.bfloat16):
        with LiveBytes() as live, tap.taking(lambda *_: alive.append(live.now)):
            head(states)
        with LiveBytes() as live:
            head(states)
            alive.append(live.now)
    assert alive[0] < head.weight.numel() < 2 * head.weight.numel() <= alive[1]


def test_the_trainer_makes_no_logits(make_model, make_trainer, lm_rows):
    """In training with accumulation, checkpointing and a tied table, and in an evaluation of the loss alone."""
    student, teacher = make_model(0, tie_word_embeddings=True), make_model(1)
    results = []
    for refusal in (None, "compared"):
        torch.manual_seed(0)
        model = make_model(0, tie_word_embeddings=True)
        model.load_state_dict(student.state_dict())
        trainer = make_trainer(
            model,
            teacher,
            lm_rows,
            eval_dataset=lm_rows[:4],
            gradient_accumulation_steps=2,
            gradient_checkpointing=True,
            max_steps=2,
            logging_steps=1,
        )
        trainer._passes.refusal = refusal
        shapes = []
        model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[:2].numel()))  # noqa: B023
        trainer.train()
        assert (max(shapes) == 1) is (refusal is None)
        losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        results.append((torch.tensor([*losses, trainer.evaluate()["eval_loss"]]), model.state_dict()))
        assert (max(shapes) == 1) is (refusal is None)
        shapes.clear()
        _, outputs = trainer.compute_loss(model, batch_of(trainer, lm_rows[:2]), return_outputs=True)
        # Whoever asks for outputs gets logits.
        assert outputs.logits.shape[1] == 5 and len(shapes) == 1
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    for name, value in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], value, rtol=1e-3, atol=1e-4, msg=name)
