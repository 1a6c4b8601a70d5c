"""A mixture's load-balancing loss: the same as the stock `Trainer` adds, of a student with experts as separate modules too."""

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.training.losses.router_loss import router_loss


def mixture(model_type, ternary, **options):
    model = tiny_model(model_type, vocab_size=384, output_router_logits=True, router_aux_loss_coef=0.7, **options)
    return (apply_bitnet(model, BitNetConfig()) if ternary else model).train()


def balance(model, batch, mask):
    """`experts * sum over experts of (share of choices, times choices a token) * mean probability`, over real tokens of all layers."""
    with torch.no_grad():
        logits = model.model(**batch, output_router_logits=True).router_logits
    probabilities = torch.cat([layer.softmax(-1)[mask.flatten().bool()] for layer in logits])
    count = model.config.num_experts_per_tok
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(count, -1).indices, 1.0)
    return probabilities.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("model_type", "ternary"), [("qwen3_moe", False), ("qwen3_moe", True), ("mixtral", True)])
def test_like_stock(model_type, ternary, steps, make_trainer, lm_rows, tmp_path, tiny_tokenizer):
    """Loss and gradients of an accumulated step without a teacher's terms."""
    ours, theirs = mixture(model_type, ternary), mixture(model_type, ternary)
    off = {"logits_loss_weight": 0, "attention_loss_weight": 0}
    options = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 4 // steps}
    trainer = make_trainer(ours, None, lm_rows, **options, **off)
    stock = Trainer(
        theirs,
        TrainingArguments(str(tmp_path / "stock"), use_cpu=True, report_to=[], **options),
        train_dataset=lm_rows,
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer),
    )
    losses = []
    for each, model in ((trainer, ours), (stock, theirs)):
        each.current_gradient_accumulation_steps = steps
        batches, count = each.get_batch_samples(iter(each.get_train_dataloader()), steps, torch.device("cpu"))
        assert len(batches) == steps
        losses.append(sum(each.training_step(model, dict(batch), count) for batch in batches))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    gate = next(p for name, p in ours.named_parameters() if name.endswith("gate.weight"))
    assert gate.grad.abs().max() > 1e-3


def test_beside_a_teacher(make_trainer, make_model, lm_rows):
    student = mixture("mixtral", ternary=True).eval()
    trainer = make_trainer(
        student, make_model(1), lm_rows, attention_loss_weight=0, max_steps=2, logging_steps=1, eval_dataset=lm_rows
    )
    batch = trainer.data_collator([dict(row) for row in lm_rows[:3]])
    loss, outputs = trainer.compute_loss(student, batch, return_outputs=True)
    # An evaluation that collects predictions would collect them too.
    assert set(outputs) == {"logits"}
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    expected = balance(student, inputs, batch["attention_mask"])
    student.config.output_router_logits = False
    torch.testing.assert_close(loss - trainer.compute_loss(student, batch), 0.7 * expected, rtol=1e-4, atol=1e-4)
    student.config.output_router_logits = True
    trainer.train()
    for record in (record for record in trainer.state.log_history if "loss" in record):
        total = record["loss_ce"] + 10 * record["loss_logits"] + 0.7 * record["loss_router"]
        assert record["loss"] == pytest.approx(total, abs=2e-3) and record["loss_router"] > 0.5
    metrics = trainer.evaluate()
    total = metrics["eval_loss_ce"] + 10 * metrics["eval_loss_logits"] + 0.7 * metrics["eval_loss_router"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-4)


def test_without_a_coefficient(make_model):
    outputs = type("Outputs", (), {"aux_loss": torch.ones(())})()
    with pytest.raises(ValueError, match="LlamaForCausalLM returns an aux_loss and has no router_aux_loss_coef"):
        router_loss(outputs, make_model(0))
    assert router_loss(type("Outputs", (), {"aux_loss": None})(), make_model(0)) is None
