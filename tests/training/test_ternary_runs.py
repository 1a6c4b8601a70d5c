"""Whole runs of a ternary student: accumulation, resuming, the quantisation warm-up, torch.compile."""

import copy

import pytest
import torch
from test_trainer_runs import KeepGradients, training_losses
from transformers import TrainerCallback

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.nn import BitLinear, set_quantization_share
from hf_bitdistill.training import DeadZoneLeakCallback, QuantizationWarmupCallback, WeightDecayCallback


TERMS = ("loss", "loss_ce", "loss_logits", "loss_attention")


@pytest.fixture
def make_student(make_model):
    """`make_student(seed, sub_norm, dtype, **options of the model's config)`, with SubLN weights that are not one."""

    def make(seed=0, sub_norm="output", dtype=torch.float32, **options):
        student = apply_bitnet(make_model(seed, **options), BitNetConfig(sub_norm=sub_norm))
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if "rms_norm" in name:
                    parameter.uniform_(0.5, 1.5)
        return student.to(dtype)

    return make


@pytest.mark.parametrize("sub_norm", ["output", "all"])
def test_accumulation_gives_the_same_gradients(sub_norm, make_student, make_model, make_trainer, lm_rows):
    kept, losses = {}, {}
    for size in (8, 1):
        callback = KeepGradients()
        trainer = make_trainer(
            # float64: a last-bit difference between batches of 8 and of 1 could round an int8 activation differently
            make_student(0, sub_norm, torch.float64),
            make_model(1, hidden_size=48, num_hidden_layers=3).double(),
            lm_rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=2,
            logging_steps=1,
            max_grad_norm=0.0,
            optim="sgd",
            relation_heads=4,
            callbacks=[callback],
        )
        trainer.train()
        kept[size], losses[size] = callback.steps, trainer.state.log_history[:2]
    assert len(kept[8]) == 2
    for one, other in zip(kept[8], kept[1], strict=True):
        assert one.keys() == other.keys() == dict(trainer.model.named_parameters()).keys()
        for name, grad in one.items():
            assert grad.abs().max() > 1e-4, name
            torch.testing.assert_close(other[name], grad, rtol=1e-4, atol=1e-5 * grad.abs().max().item(), msg=name)
    for one, other in zip(losses[8], losses[1], strict=True):
        for key in TERMS:
            assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_seeds_and_resuming(make_student, make_model, make_trainer, lm_rows, tmp_path):
    """Six steps in one go, again, and three and three through a checkpoint on disk: the same, bit for bit."""
    options = {"max_steps": 6, "logging_steps": 1, "seed": 7, "gradient_accumulation_steps": 2, "save_steps": 3}
    # The checkpoint lies in the middle of the warm-up.
    options.update(quantization_warmup_steps=5, save_strategy="steps")

    def run(name, seed=0, resume=None):
        student = make_student(seed, "all", attention_dropout=0.1)
        trainer = make_trainer(student, make_model(1), lm_rows, name=name, **options)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return trainer

    whole, again = run("whole"), run("again")
    # Another start: everything that matters must come from the disk.
    resumed = run("resumed", seed=5, resume=tmp_path / "whole" / "checkpoint-3")
    for key in (*TERMS, "grad_norm", "learning_rate"):
        assert len(training_losses(whole, key)) == 6
        assert training_losses(whole, key) == training_losses(again, key) == training_losses(resumed, key)
    assert len(set(training_losses(whole))) == 6
    states = [trainer.model.state_dict() for trainer in (whole, again, resumed)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name]), name
    untrained = make_student(0, "all").state_dict()
    assert not any(torch.equal(tensor, untrained[name]) for name, tensor in states[0].items() if "rms" in name)


class WatchShares(TrainerCallback):
    """After every step, the share of all ternary layers, and whether the model evaluates as it would when packed."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.shares, self.ternary = [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        shares = {layer.quantization_share for layer in model.modules() if isinstance(layer, BitLinear)}
        assert len(shares) == 1
        self.shares.append(shares.pop())
        model.eval()
        with torch.no_grad():
            self.ternary.append(torch.equal(model(self.tokens).logits, pack(model, table_bits=32)(self.tokens).logits))
        model.train()


def test_quantization_warmup(make_student, make_model, make_trainer, lm_rows, tmp_path):
    tokens = torch.randint(3, 384, (2, 9), generator=torch.Generator().manual_seed(2))
    options = {"quantization_warmup_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}

    def run(name, resume=None, **more):
        watch = WatchShares(tokens)
        student = make_student(0)
        trainer = make_trainer(
            student, make_model(1), lm_rows, name=name, callbacks=[watch], **{"max_steps": 6, **options, **more}
        )
        trainer.train(resume_from_checkpoint=resume and str(resume))
        assert all(watch.ternary)
        assert {layer.quantization_share for layer in student.modules() if isinstance(layer, BitLinear)} == {1.0}
        student.eval()
        with torch.no_grad():
            assert torch.equal(student(tokens).logits, pack(student, table_bits=32)(tokens).logits)
        return watch.shares, training_losses(trainer)

    shares, losses = run("whole")
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert run("resumed", tmp_path / "whole" / "checkpoint-2") == (shares[2:], losses)
    # Shorter than the warm-up: the trained model is ternary all the same.
    assert run("short", max_steps=2, quantization_warmup_steps=100)[0] == pytest.approx([0.01, 0.02])
    assert run("none", max_steps=1, quantization_warmup_steps=0)[1] != losses[:1]
    with pytest.raises(ValueError, match="at least 1"):
        QuantizationWarmupCallback(0)


def test_dead_zone_leak(make_student, make_model, make_trainer, lm_rows, tmp_path):
    class Watch(TrainerCallback):
        def __init__(self):
            self.leaks = []

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            self.on_step_end(args, state, control, model)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            leaks = {layer.dead_zone_leak for layer in model.modules() if isinstance(layer, BitLinear)}
            self.leaks.append(round(leaks.pop(), 6))
            assert not leaks

    def run(name, resume=None, **more):
        watch, student = Watch(), make_student(0)
        options = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "max_steps": 5, **more}
        trainer = make_trainer(student, make_model(1), lm_rows, name=name, callbacks=[watch], **options)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        assert {layer.dead_zone_leak for layer in student.modules() if isinstance(layer, BitLinear)} == {0.0}
        return watch.leaks, training_losses(trainer)

    leaks, losses = run("whole", dead_zone_leak=0.4)
    assert leaks == [0.4, 0.3, 0.2, 0.1, 0.0]
    assert run("resumed", tmp_path / "whole" / "checkpoint-2", dead_zone_leak=0.4) == (leaks[2:], losses)
    assert run("without")[1] != losses
    with pytest.raises(ValueError, match="leak must be in"):
        DeadZoneLeakCallback(0.0)


def test_scale_gradient(make_student, make_model, make_trainer, lm_rows):
    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            assert {layer.scale_gradient for layer in model.modules() if isinstance(layer, BitLinear)} == {True}

    def run(name, callbacks=(), **more):
        student = make_student(0)
        options = {"logging_steps": 1, "max_steps": 3, **more}
        trainer = make_trainer(student, make_model(1), lm_rows, name=name, callbacks=list(callbacks), **options)
        trainer.train()
        assert {layer.scale_gradient for layer in student.modules() if isinstance(layer, BitLinear)} == {False}
        return training_losses(trainer)

    learned, constant = run("learned", [Watch()], scale_gradient=True), run("constant")
    assert learned[0] == constant[0]
    assert learned[-1] != constant[-1]


def test_weight_decay_stops(make_student, make_model, make_trainer, lm_rows, tmp_path):
    class Watch(TrainerCallback):
        def __init__(self):
            self.decays = []

        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            self.decays.append([group["weight_decay"] for group in optimizer.param_groups])

    def run(name, resume=None, share=0.5):
        watch = Watch()
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "weight_decay": 0.1}
        trainer = make_trainer(
            make_student(0), make_model(1), lm_rows, name=name, callbacks=[watch], weight_decay_share=share, **options
        )
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return watch.decays

    decays = run("half")
    assert decays == [[0.1, 0.0]] * 2 + [[0.0, 0.0]] * 2
    for step in (1, 3):
        assert run(f"resumed{step}", tmp_path / "half" / f"checkpoint-{step}") == decays[step:]
    assert run("whole", share=1.0) == [[0.1, 0.0]] * 4
    with pytest.raises(ValueError, match="share must be in"):
        WeightDecayCallback(1.0)


def test_the_share_changes_training_and_not_evaluation(make_student, make_model, make_trainer, lm_rows):
    student = make_student(0)
    trainer = make_trainer(student, make_model(1), lm_rows, eval_dataset=lm_rows, relation_heads=4)
    batch = trainer.data_collator([dict(row) for row in lm_rows[:2]])
    train_losses, metrics = [], []
    for share in (1.0, 0.25, 0.0):
        set_quantization_share(student, share)
        student.train()
        train_losses.append(trainer.compute_loss(student, batch).item())
        metrics.append({key: value for key, value in trainer.evaluate().items() if "loss" in key})
    assert len(metrics[0]) == 4 and metrics[0] == metrics[1] == metrics[2]
    assert len({round(loss, 3) for loss in train_losses}) == 3


def test_a_ternary_student_learns_from_its_teacher(make_student, make_model, make_trainer, lm_rows):
    """Also with gradient checkpointing, which must not change anything."""
    losses = {}
    for checkpointing in (False, True):
        teacher = make_model(1)
        teacher.lm_head.weight.data *= 20  # sure of itself, so that there is something to learn
        trainer = make_trainer(
            make_student(0),
            teacher,
            lm_rows,
            per_device_train_batch_size=8,
            max_steps=16,
            logging_steps=1,
            learning_rate=1e-2,
            ce_loss_weight=0,
            relation_heads=4,
            quantization_warmup_steps=2,
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        losses[checkpointing] = {key: training_losses(trainer, key) for key in TERMS}
    for key in ("loss", "loss_logits", "loss_attention"):
        assert losses[False][key][-1] < 0.85 * losses[False][key][0], key
        assert losses[True][key] == pytest.approx(losses[False][key], rel=1e-6)


def test_a_compiled_run_gives_the_same_losses(make_student, make_model, make_trainer, lm_rows):
    # One layer and one shape of batch: compiling takes almost all of the time.
    ids = [lm_rows[0]["input_ids"][index:] + lm_rows[0]["input_ids"][:index] for index in range(8)]
    rows = [{"input_ids": row, "attention_mask": [1] * 12, "labels": [-100] * 8 + row[8:]} for row in ids]
    losses = {}
    for name, options in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        torch._dynamo.reset()
        student, teacher = make_student(0, num_hidden_layers=1), make_model(1, num_hidden_layers=1)
        trainer = make_trainer(
            student, teacher, rows, name=name, max_steps=2, logging_steps=1, seed=3, relation_heads=4, **options
        )
        trainer.train()
        losses[name] = {key: training_losses(trainer, key) for key in TERMS}
        assert trainer.accelerator.unwrap_model(trainer.model) is student
    torch._dynamo.reset()
    for key in TERMS:
        assert len(losses["plain"][key]) == 2
        assert losses["compiled"][key] == pytest.approx(losses["plain"][key], rel=1e-4)


def test_a_hybrid_whose_default_layer_has_no_attention(make_trainer, lm_rows):
    """Of the student's two layers the first has attention, of the teacher's four the second; 22/28 is another one."""
    layers = ["full_attention", "linear_attention"]
    student = tiny_model("qwen3_5_text", vocab_size=384, layer_types=layers)
    teacher = tiny_model(
        "qwen3_5_text", 1, vocab_size=384, num_hidden_layers=4, layer_types=[*layers[::-1], *layers[1:] * 2]
    )
    trainer = make_trainer(
        apply_bitnet(student), teacher, lm_rows, max_steps=1, logging_steps=1, hidden_loss_weight=1.0
    )
    assert trainer.relation_layers == ([0], [1])
    trainer.train()
    record = trainer.state.log_history[0]
    assert all(record[term] > 0 for term in (*TERMS, "loss_hidden"))


def test_experts(make_trainer, lm_rows):
    """The student's are separate, its teacher's fused; all of them are trained and all losses taken."""
    teacher = tiny_model("qwen3_moe", vocab_size=384)
    student = apply_bitnet(copy.deepcopy(teacher))
    before = student.model.layers[1].mlp.experts[3].down_proj.weight.detach().clone()
    trainer = make_trainer(student, teacher, lm_rows, max_steps=2, logging_steps=1, hidden_loss_weight=1.0)
    trainer.train()
    assert all(trainer.state.log_history[0][term] > 0 for term in (*TERMS, "loss_hidden"))
    assert not torch.equal(student.model.layers[1].mlp.experts[3].down_proj.weight, before)
