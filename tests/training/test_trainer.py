"""What `DistillationTrainer.compute_loss` computes, against formulas written out here, and what it refuses."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from hf_bitdistill import apply_bitnet
from hf_bitdistill.training import AttentionStateCapture, DistillationConfig, DistillationTrainer
from hf_bitdistill.training.config import relation_layers


def batch_of(trainer, rows):
    return dict(trainer.data_collator([dict(row) for row in rows]))


def relation_term(teacher, student, rows, heads, layers):
    """The cosine loss, from unpadded sequences one at a time: mean over rows, / (layers * heads), over Q, K, V."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        captured = []
        for model, chosen in ((teacher, layers[1]), (student, layers[0])):
            with AttentionStateCapture(model, chosen) as capture:
                model(input_ids=ids, use_cache=False)
            captured.append(capture.states)
        for t_layer, s_layer in zip(*captured, strict=True):
            for t, s in zip(t_layer, s_layer, strict=True):
                log_relations = []
                for x in (t, s):
                    x = x[0].transpose(0, 1).reshape(ids.shape[1], heads, -1)
                    x = F.normalize(x, dim=-1)
                    log_relations.append(torch.einsum("iad,jad->aij", x, x).log_softmax(-1))
                log_t, log_s = log_relations
                total = total + (log_t.exp() * (log_t - log_s)).sum()
        count += ids.shape[1] * heads
    return total / count / (len(layers[0]) * heads)


def token_terms(teacher, student, rows, tau=5.0):
    """Mean cross entropy and tau^2 KL over the labels, from unpadded sequences one at a time."""
    cross_entropy, kl, count = 0.0, 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        s, t = student(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0].detach()
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                cross_entropy = cross_entropy - s[position].log_softmax(-1)[label]
                p, q = (s[position] / tau).softmax(-1), (t[position] / tau).softmax(-1)
                kl = kl + tau**2 * (q * (q.log() - p.log())).sum()
                count += 1
    return cross_entropy / count, kl / count


def gradients(loss, model):
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True))


def test_causal_loss_and_gradient(make_model, make_trainer, lm_rows):
    student = make_model(0)
    # wider, deeper, other heads
    teacher = make_model(1, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3)
    trainer = make_trainer(
        student, teacher, lm_rows, attention_layers=[0, -1], relation_heads=4, logits_loss_weight=2.0, kl_chunk_size=3
    )
    rows = lm_rows[:3]
    student.eval()
    loss = trainer.compute_loss(student, batch_of(trainer, rows))
    assert trainer.relation_layers == ([0, 1], [0, 2])
    cross_entropy, kl = token_terms(teacher, student, rows)
    relation = relation_term(teacher, student, rows, 4, trainer.relation_layers)
    expected = cross_entropy + 2.0 * kl + 100.0 * relation
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted, actual = gradients(expected, student), gradients(loss, student)
    for name, grad in wanted.items():
        torch.testing.assert_close(actual[name], grad, rtol=1e-3, atol=1e-4)


def test_classification_loss(make_model, make_trainer, class_rows):
    student, teacher = make_model(0, classes=3), make_model(1, classes=3, hidden_size=64, num_hidden_layers=4)
    trainer = make_trainer(student, teacher, class_rows, relation_heads=4)
    student.eval()
    rows = class_rows[:4]
    loss = trainer.compute_loss(student, batch_of(trainer, rows))
    logits = [
        torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])
        for model in (student, teacher)
    ]
    kl = 25 * F.kl_div((logits[0] / 5).log_softmax(-1), (logits[1] / 5).softmax(-1), reduction="batchmean")
    cross_entropy = F.cross_entropy(logits[0], torch.tensor([row["labels"] for row in rows]))
    relation = relation_term(teacher, student, rows, 4, trainer.relation_layers)
    torch.testing.assert_close(loss, cross_entropy + 10 * kl + 100 * relation, rtol=1e-5, atol=1e-5)
    assert student.config.problem_type == "single_label_classification"


def test_only_labelled_positions_reach_the_output_layer(make_model, make_trainer, lm_rows, monkeypatch):
    student, teacher = make_model(0).eval(), make_model(1)
    trainer = make_trainer(student, teacher, lm_rows)
    # row 0 predicts its tokens 8-11 from positions 7-10, row 1 its token 4 from position 3
    batch = batch_of(trainer, lm_rows[:2])
    trainer._passes.refusal = "as it is for models whose output layer does not stand alone"
    seen = []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    sliced = trainer.compute_loss(student, batch)
    assert seen == [5, 5]
    trainer._wanted_logits = "all"
    full = trainer.compute_loss(student, batch)
    assert seen[2:] == [12, 12]
    torch.testing.assert_close(sliced, full)
    wanted, actual = gradients(full, student), gradients(sliced, student)
    assert wanted.keys() == actual.keys() == dict(student.named_parameters()).keys()
    for name, grad in wanted.items():
        assert grad.abs().max() > 1e-3, name
        torch.testing.assert_close(actual[name], grad, rtol=1e-4, atol=1e-5, msg=name)
    # A forward without the option computes everything; the loss is the same.
    trainer._wanted_logits = None
    monkeypatch.setattr("hf_bitdistill.training.passes.forward_parameters", lambda model: {})
    monkeypatch.setattr(
        "hf_bitdistill.training.passes.model_inputs",
        lambda model, batch, positions: {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]},
    )
    torch.testing.assert_close(trainer.compute_loss(student, batch), full)


def test_teacher_runs_only_when_it_is_needed(make_model, make_trainer, lm_rows):
    student, teacher = make_model(0).eval(), make_model(1)
    batch_rows = lm_rows[:2]
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(1))
    trainer = make_trainer(student, teacher, lm_rows, logits_loss_weight=0, attention_loss_weight=0)
    assert trainer.teacher is None
    loss = trainer.compute_loss(student, batch_of(trainer, batch_rows))
    torch.testing.assert_close(loss, token_terms(teacher, student, batch_rows)[0], rtol=1e-5, atol=1e-5)
    calls.clear()
    trainer = make_trainer(student, teacher, lm_rows, attention_loss_weight=0)
    assert trainer.relation_layers is None
    trainer.compute_loss(student, batch_of(trainer, batch_rows))
    trainer = make_trainer(student, teacher, lm_rows, logits_loss_weight=0, ce_loss_weight=0, relation_heads=4)
    loss = trainer.compute_loss(student, batch_of(trainer, batch_rows))
    assert len(calls) == 2
    expected = relation_term(teacher, student, batch_rows, 4, trainer.relation_layers)
    torch.testing.assert_close(loss, 100 * expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


@pytest.mark.parametrize("classes", [None, 3])
def test_nothing_labelled(classes, make_model, make_trainer, lm_rows, class_rows, caplog):
    student, teacher = make_model(0, classes=classes), make_model(1, classes=classes)
    rows = [dict(row) for row in (class_rows if classes else lm_rows)]
    for row in rows:
        row["labels"] = -100 if classes else [-100] * len(row["labels"])
    trainer = make_trainer(student, teacher, rows, max_steps=2, logging_steps=1, weight_decay=0)
    logging.getLogger("transformers").propagate = True
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    with caplog.at_level(logging.WARNING):
        loss = trainer.compute_loss(student, batch_of(trainer, rows[:2]))
        assert loss == 0
        for grad in gradients(loss, student).values():
            assert grad is None or grad.eq(0).all()
        trainer.train()
    for name, p in student.named_parameters():
        assert torch.equal(p, before[name])
    assert [record["loss"] for record in trainer.state.log_history if "loss" in record] == [0.0, 0.0]
    assert sum("no labels at all" in record.getMessage() for record in caplog.records) == 1


def test_sequences_without_a_label_take_no_part(make_model, make_trainer, lm_rows):
    student, teacher = make_model(0).eval(), make_model(1)
    trainer = make_trainer(student, teacher, lm_rows)
    silent = {**lm_rows[2], "labels": [-100] * len(lm_rows[2]["labels"])}
    with_silent = trainer.compute_loss(student, batch_of(trainer, [lm_rows[0], silent]))
    torch.testing.assert_close(with_silent, trainer.compute_loss(student, batch_of(trainer, lm_rows[:1])))


@pytest.mark.parametrize("length", [1, 2])
def test_one_token(length, make_model, make_trainer, lm_rows):
    """One token predicts nothing (a causal LM has no label for it); two give one prediction."""
    student, teacher = make_model(0), make_model(1)
    row = {"input_ids": [5] * length, "attention_mask": [1] * length, "labels": [5] * length}
    trainer = make_trainer(student, teacher, lm_rows)
    loss = trainer.compute_loss(student, batch_of(trainer, [row]))
    assert loss.isfinite() and (loss == 0) == (length == 1)
    for grad in gradients(loss, student).values():
        assert grad is None or grad.isfinite().all()


def test_classification_of_one_token(make_model, make_trainer, class_rows):
    student, teacher = make_model(0, classes=3), make_model(1, classes=3)
    trainer = make_trainer(student, teacher, class_rows)
    loss = trainer.compute_loss(
        student, {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, 1), "labels": torch.tensor([1])}
    )
    assert loss.isfinite() and loss > 0


def test_a_batch_without_mask_or_labels(make_model, make_trainer, lm_rows):
    student, teacher = make_model(0).eval(), make_model(1)
    trainer = make_trainer(student, teacher, lm_rows)
    batch = batch_of(trainer, lm_rows[:1])
    expected = trainer.compute_loss(student, batch)
    del batch["attention_mask"]
    torch.testing.assert_close(trainer.compute_loss(student, batch), expected)
    shifted = {"input_ids": batch["input_ids"], "shift_labels": F.pad(batch["labels"][:, 1:], (0, 1), value=-100)}
    torch.testing.assert_close(trainer.compute_loss(student, shifted), expected)
    with pytest.raises(ValueError, match=r"no labels .*DataCollatorForLanguageModeling"):
        trainer.compute_loss(student, {"input_ids": batch["input_ids"]})


def test_a_mask_of_four_dimensions(make_model, make_trainer, lm_rows):
    student, teacher = make_model(0).eval(), make_model(1)
    trainer = make_trainer(student, teacher, lm_rows, attention_loss_weight=0)
    batch = batch_of(trainer, lm_rows[:1])
    expected = trainer.compute_loss(student, batch)
    tokens = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(trainer.compute_loss(student, batch), expected)
    trainer = make_trainer(student, teacher, lm_rows, hidden_loss_weight=1.0, attention_loss_weight=0)
    with pytest.raises(ValueError, match=r"need an attention mask \[B, T\], got \(1, 1,"):
        trainer.compute_loss(student, batch)


def test_label_smoothing(make_model, make_trainer, lm_rows):
    student = make_model(0).eval()
    trainer = make_trainer(
        student, None, lm_rows, logits_loss_weight=0, attention_loss_weight=0, label_smoothing_factor=0.1
    )
    batch = batch_of(trainer, lm_rows[:3])
    outputs = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    expected = trainer.label_smoother(outputs, batch["labels"], shift_labels=True)
    torch.testing.assert_close(trainer.compute_loss(student, batch), expected)


def test_evaluate_causal(make_model, make_trainer, lm_rows):
    student, teacher = make_model(0), make_model(1)

    def accuracy(prediction):
        logits, labels = prediction.predictions, prediction.label_ids
        assert logits.shape == (8, 12, 384) and labels.shape == (8, 12)
        keep = labels[:, 1:] != -100
        return {"accuracy": float((logits[:, :-1].argmax(-1) == labels[:, 1:])[keep].mean())}

    trainer = make_trainer(
        student, teacher, lm_rows, eval_dataset=lm_rows, compute_metrics=accuracy, per_device_eval_batch_size=3
    )
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    total = metrics["eval_loss_ce"] + 10 * metrics["eval_loss_logits"] + 100 * metrics["eval_loss_attention"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-4)
    assert trainer.state.log_history[-1]["eval_loss_ce"] == metrics["eval_loss_ce"]
    trainer.compute_metrics = None
    again = trainer.evaluate(metric_key_prefix="held_out")
    assert again["held_out_loss_ce"] == pytest.approx(metrics["eval_loss_ce"], rel=1e-5)
    assert again["held_out_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)


def test_evaluate_and_predict_classification(make_model, make_trainer, class_rows):
    student, teacher = make_model(0, classes=3), make_model(1, classes=3)

    def accuracy(prediction):
        assert prediction.predictions.shape == (8, 3)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = make_trainer(student, teacher, class_rows, eval_dataset=class_rows, compute_metrics=accuracy)
    metrics = trainer.evaluate()
    assert {"eval_accuracy", "eval_loss", "eval_loss_ce", "eval_loss_logits", "eval_loss_attention"} <= metrics.keys()
    unlabelled = [{key: value for key, value in row.items() if key != "labels"} for row in class_rows]
    trainer.compute_metrics = None
    predictions = trainer.predict(unlabelled).predictions
    with torch.no_grad():
        expected = student(input_ids=torch.tensor([class_rows[4]["input_ids"]])).logits[0]
    np.testing.assert_allclose(predictions[4], expected, rtol=1e-4, atol=1e-6)


def test_relation_layers():
    def layers(student, teacher, student_depth=28, teacher_depth=28, *attention):
        args = DistillationConfig(attention_layers=student, teacher_attention_layers=teacher)
        return relation_layers(args, student_depth, teacher_depth, *attention)

    assert layers(None, None) == ([22], [22])
    assert layers(None, None, 28, 36) == ([22], [28])
    assert layers(None, [-1], 2, 36) == ([1], [35])
    assert layers([-6, 3], None, 12, 24) == ([6, 3], [18, 7])
    assert layers([0, 11], None, 12, 6) == ([0, 11], [0, 5])
    for depth in range(1, 40):
        assert layers(list(range(depth)), None, depth, depth)[1] == list(range(depth))
    # Hybrid models: defaults are layers with attention, of two equally near ones the later; what is asked for stays.
    assert layers(None, None, 24, 32, range(3, 24, 4), range(3, 32, 4)) == ([19], [27])
    assert layers(None, None, 28, 28, [20, 24], []) == ([24], [24])
    assert layers([18, -2], None, 24, 24, range(3, 24, 4), range(3, 24, 4)) == ([18, 22], [19, 22])
    with pytest.raises(ValueError, match="layer 28 does not exist"):
        layers([28], None)


def hidden_term(teacher, student, rows):
    """The relative squared error, from unpadded sequences one at a time; the teacher is twice as deep."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        t, s = (m(input_ids=ids, output_hidden_states=True).hidden_states for m in (teacher, student))
        # Middles of the student's two layers, at 1/4 and 3/4 of the depth: the teacher's second and fourth layer.
        for mine, theirs in ((s[1], t[2]), (s[2], t[4])):
            theirs = theirs.detach()
            total = total + ((mine - theirs).square().sum(-1) / theirs.square().sum(-1)).sum()
        count += ids.shape[1]
    return total / (2 * count)


def test_hidden_state_loss(make_model, make_trainer, lm_rows):
    student, teacher = make_model(0).eval(), make_model(1, num_hidden_layers=4)
    trainer = make_trainer(
        student, teacher, lm_rows, logits_loss_weight=0, attention_loss_weight=0, hidden_loss_weight=3.0
    )
    # A row without a label takes no part.
    unlabelled = {**lm_rows[2], "labels": [-100] * len(lm_rows[2]["labels"])}
    batch = batch_of(trainer, [*lm_rows[:2], unlabelled])
    loss, outputs = trainer.compute_loss(student, batch, return_outputs=True)
    assert "hidden_states" not in outputs
    expected = token_terms(teacher, student, lm_rows[:2])[0] + 3.0 * hidden_term(teacher, student, lm_rows[:2])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(loss, student), gradients(expected, student), rtol=1e-4, atol=1e-5)


def test_hidden_states_of_a_classifier(make_model, make_trainer, class_rows):
    """Next to every other loss, in training and in an evaluation that asks for predictions."""
    student, teacher = make_model(0, classes=3), make_model(1, classes=3)
    options = {"eval_dataset": class_rows, "relation_heads": 4, "gradient_checkpointing": True, "logging_steps": 1}
    trainer = make_trainer(student, teacher, class_rows, hidden_loss_weight=1.0, max_steps=2, **options)
    trainer.train()
    logged = [record for record in trainer.state.log_history if "loss_hidden" in record]
    assert len(logged) == 2 and all(record["loss_hidden"] > 0 for record in logged)
    for record in logged:
        total = record["loss_ce"] + 10 * record["loss_logits"] + 100 * record["loss_attention"] + record["loss_hidden"]
        assert record["loss"] == pytest.approx(total, abs=2e-3)
    prediction = trainer.predict(class_rows)
    assert prediction.predictions.shape == (len(class_rows), 3) and prediction.metrics["test_loss_hidden"] > 0


def test_hidden_state_loss_that_falls(make_model, make_trainer, lm_rows):
    """Full at first, gone after its share of the steps, and then no teacher runs for it any more."""
    student, teacher = make_model(0).eval(), make_model(1)
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(1))
    options = {"logits_loss_weight": 0, "attention_loss_weight": 0, "logging_steps": 1, "max_steps": 4}
    trainer = make_trainer(student, teacher, lm_rows, hidden_loss_weight=2.0, hidden_loss_share=0.5, **options)
    assert trainer.compute_loss(student, batch_of(trainer, lm_rows[:2])).isfinite() and len(calls) == 1
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert ["loss_hidden" in record for record in records] == [True, True, False, False] and len(calls) == 3
    for record, weight in zip(records, (2.0, 1.0, 0.0, 0.0), strict=True):
        total = record["loss_ce"] + weight * record.get("loss_hidden", 0.0)
        assert record["loss"] == pytest.approx(total, abs=2e-3)


def test_refusals(make_model, make_trainer, lm_rows, class_rows, tiny_tokenizer, tmp_path):
    student, teacher = make_model(0), make_model(1)
    with pytest.raises(TypeError, match="must be a DistillationConfig, got TrainingArguments"):
        DistillationTrainer(model=student, teacher_model=teacher, args=TrainingArguments(str(tmp_path)))
    with pytest.raises(ValueError, match="logits_loss_weight, attention_loss_weight need a teacher"):
        make_trainer(student, None, lm_rows)
    with pytest.raises(ValueError, match="hidden states are 32 wide and the teacher's 128"):
        make_trainer(student, make_model(1, hidden_size=128), lm_rows, hidden_loss_weight=1.0)
    with pytest.raises(ValueError, match="same object"):
        make_trainer(student, student, lm_rows)
    with pytest.raises(ValueError, match="causal_lm head and the teacher a sequence_classification head"):
        make_trainer(student, make_model(1, classes=3), lm_rows)
    with pytest.raises(ValueError, match="3 labels and the teacher 2"):
        make_trainer(make_model(0, classes=3), make_model(1, classes=2), class_rows)
    with pytest.raises(ValueError, match="pad_token_id is 0 in the student and 2 in the teacher"):
        make_trainer(make_model(0, classes=3), make_model(1, classes=3, pad_token_id=2), class_rows)
    with pytest.raises(ValueError, match="num_labels=1: only single-label"):
        make_trainer(make_model(0, classes=1), make_model(1, classes=1), class_rows)
    with pytest.raises(ValueError, match="problem_type='regression'"):
        make_trainer(make_model(0, classes=3, problem_type="regression"), make_model(1, classes=3), class_rows)
    with pytest.raises(ValueError, match="vocabulary has 384 rows and the teacher's 400"):
        make_trainer(student, make_model(1, vocab_size=400), lm_rows, teacher_processing_class=None)
    with pytest.raises(ValueError, match="layer 5 does not exist in a model of 2 layers"):
        make_trainer(student, teacher, lm_rows, attention_layers=[5])
    with pytest.raises(ValueError, match=r"relation_heads=5 must divide every width"):
        trainer = make_trainer(student, teacher, lm_rows, relation_heads=5)
        trainer.compute_loss(student, batch_of(trainer, lm_rows[:1]))
    with pytest.raises(ValueError, match="one integer label a sequence"):
        trainer = make_trainer(make_model(0, classes=3), make_model(1, classes=3), class_rows)
        trainer.compute_loss(trainer.model, {"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 3)})


def test_padded_vocabularies_of_one_tokenizer(make_model, make_trainer, lm_rows):
    """Wider logits are fine if the tokenizers are the same: surplus columns are ignored by the KL."""
    student, teacher = make_model(0).eval(), make_model(1, vocab_size=400)
    trainer = make_trainer(student, teacher, lm_rows, attention_loss_weight=0, ce_loss_weight=0, logits_loss_weight=1)
    batch = batch_of(trainer, lm_rows[:2])
    loss = trainer.compute_loss(student, batch)
    with torch.no_grad():
        teacher.lm_head.weight[384:] = 7.0
    torch.testing.assert_close(trainer.compute_loss(student, batch), loss)
    narrow = make_model(2)
    narrow.load_state_dict({k: v[:384] if v.shape[0] == 400 else v for k, v in teacher.state_dict().items()})
    torch.testing.assert_close(loss, token_terms(narrow, student, lm_rows[:2])[1], rtol=1e-4, atol=1e-5)


def test_evaluations_of_different_steps_have_the_same_weights(make_model, make_trainer, lm_rows):
    """Of a hidden state loss that falls in training: the weight of its end."""
    options = {"logits_loss_weight": 0, "attention_loss_weight": 0, "max_steps": 4, "eval_dataset": lm_rows}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "hidden_loss_weight": 2.0, "hidden_loss_share": 0.5}
    trainer = make_trainer(make_model(0), make_model(1), lm_rows, **options)
    trainer.train()
    records = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert records[0]["eval_loss_hidden"] > 0
    for record in records:
        assert record["eval_loss"] == pytest.approx(record["eval_loss_ce"], abs=1e-4)


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_that_would_round_latent_weights_is_refused(make_model, make_trainer, lm_rows, option):
    student = apply_bitnet(make_model(0))
    with pytest.raises(ValueError, match=f"{option} casts the student"):
        make_trainer(student, make_model(1), lm_rows, **{option: True})
    make_trainer(make_model(0), make_model(1), lm_rows, **{option: True})


def test_classifiers_read_past_the_padding_that_the_tokenizer_gives(
    make_model, make_trainer, class_rows, tiny_tokenizer
):
    models = [make_model(seed, classes=3, pad_token_id=2) for seed in (0, 1)]
    assert tiny_tokenizer.pad_token_id == 0
    make_trainer(*models, class_rows)
    assert [model.config.pad_token_id for model in models] == [0, 0]


def test_means_begin_anew_with_a_training(make_model, make_trainer, lm_rows):
    trainer = make_trainer(make_model(0), make_model(1), lm_rows, max_steps=2, logging_steps=2)
    trainer._train_means.add_weight(3)  # as a training leaves it that failed between two logs
    trainer.train()
    record = next(record for record in trainer.state.log_history if "loss_ce" in record)
    total = record["loss_ce"] + 10 * record["loss_logits"] + 100 * record["loss_attention"]
    assert record["loss"] == pytest.approx(total, abs=2e-3)
