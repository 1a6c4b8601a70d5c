"""Packed and left-padded batches have the loss, counts and gradients of the batch padded on the right."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from packaging.version import Version
from test_trainer import batch_of, gradients, hidden_term, relation_term, token_terms
from transformers import DataCollatorWithFlattening

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.data.batches import DOCUMENTS, PreparedBatch, prepare_batch
from hf_bitdistill.training.batch_layout import check_layout
from hf_bitdistill.training.losses.document_groups import document_groups, labelled_tokens, within_documents


OPTIONS = {"relation_heads": 4, "hidden_loss_weight": 3.0}


def flattened(rows, **options):
    return dict(DataCollatorWithFlattening(return_tensors="pt", **options)([dict(row) for row in rows]))


def left_padded(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.tensor([[pad] * (width - len(row[key])) + row[key] for row in rows]) for key, pad in fill.items()
    }


def assert_same(trainer, student, batch, expected_batch):
    expected = trainer.compute_loss(student, expected_batch)
    loss = trainer.compute_loss(student, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    wanted, actual = gradients(expected, student), gradients(loss, student)
    for name, grad in wanted.items():
        torch.testing.assert_close(actual[name], grad, rtol=1e-4, atol=2e-5 * float(grad.abs().max()), msg=name)
    prepared = [trainer._prepared(each) for each in (batch, expected_batch)]
    assert torch.equal(*map(trainer._count, prepared))


@pytest.fixture
def models(make_model):
    return make_model(0).eval(), make_model(1, num_hidden_layers=4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed(attention, causal, models, make_trainer, lm_rows):
    student, teacher = models
    for model in models:
        model.set_attn_implementation(attention)
    trainer = make_trainer(student, teacher, lm_rows, relation_causal=causal, **OPTIONS)
    rows = [dict(row) for row in lm_rows[:5]]
    # The first token of a document predicts nothing; one without labels takes no part.
    rows[1]["labels"] = [-100] * len(rows[1]["labels"])
    assert_same(trainer, student, flattened(rows), batch_of(trainer, rows))
    if not causal:
        labelled = [rows[0], *rows[2:]]
        ce, kl = token_terms(teacher, student, labelled)
        relation = relation_term(teacher, student, labelled, 4, trainer.relation_layers)
        expected = ce + 10 * kl + 100 * relation + 3 * hidden_term(teacher, student, labelled)
        torch.testing.assert_close(trainer.compute_loss(student, flattened(rows)), expected, rtol=1e-5, atol=1e-5)


def test_borders_told_in_other_ways(models, make_trainer, lm_rows):
    student, teacher = models
    trainer = make_trainer(student, teacher, lm_rows, **OPTIONS)
    rows = lm_rows[:4]
    padded = batch_of(trainer, rows)
    all_told = flattened(rows, return_flash_attn_kwargs=True, return_seq_idx=True)
    assert_same(trainer, student, all_told, padded)
    for kept in ({"seq_idx"}, {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}):
        some = {key: value for key, value in all_told.items() if key in {"input_ids", "labels"} | kept}
        assert_same(trainer, student, some, padded)
    # Labels of the first tokens would be predicted by other documents: they count as little as in a padded batch.
    whole = [{**row, "labels": row["input_ids"]} for row in rows]
    packed = flattened(whole)
    packed["labels"] = packed["input_ids"].clone()
    # With a mask of ones transformers would look over the borders.
    packed["attention_mask"] = torch.ones_like(packed["input_ids"])
    assert_same(trainer, student, packed, batch_of(trainer, whole))
    # Several packed rows.
    two = {
        key: torch.tensor([rows[0][key] + rows[1][key], rows[3][key] + [5] * 10]) for key in ("input_ids", "labels")
    }
    two["position_ids"] = torch.tensor([[*range(12), *range(5)], [*range(7), *range(10)]])
    tail = {"input_ids": [5] * 10, "attention_mask": [1] * 10, "labels": [-100] + [5] * 9}
    assert_same(trainer, student, two, batch_of(trainer, [rows[0], rows[1], rows[3], tail]))


@pytest.mark.parametrize("full_labels", [False, True])
def test_left_padding(full_labels, models, make_trainer, lm_rows):
    student, teacher = models
    trainer = make_trainer(student, teacher, lm_rows, **OPTIONS)
    rows = lm_rows[:5]
    if full_labels:
        # The label of a first token: padding does not predict it.
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
    assert_same(trainer, student, left_padded(rows), batch_of(trainer, rows))
    with_positions = left_padded(rows)
    mask = with_positions["attention_mask"]
    with_positions["position_ids"] = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    assert_same(trainer, student, with_positions, batch_of(trainer, rows))


def test_left_padding_of_a_classifier(make_model, make_trainer, class_rows):
    student, teacher = make_model(0, classes=3).eval(), make_model(1, classes=3)
    trainer = make_trainer(student, teacher, class_rows, relation_heads=4)
    rows = class_rows[:4]
    batch = left_padded([{**row, "labels": []} for row in rows])
    batch["labels"] = torch.tensor([row["labels"] for row in rows])
    assert_same(trainer, student, batch, batch_of(trainer, rows))


def test_training_and_evaluation_on_packed_batches(make_model, make_trainer, lm_rows):
    runs = {}
    for name in ("padded", "packed"):
        student, teacher = make_model(0), make_model(1)
        trainer = make_trainer(
            student, teacher, lm_rows, name, eval_dataset=lm_rows, relation_heads=4, max_steps=3, logging_steps=1,
            gradient_accumulation_steps=2, per_device_eval_batch_size=3, max_grad_norm=0.0,
        )  # fmt: skip
        if name == "packed":
            trainer.data_collator.collator = DataCollatorWithFlattening(return_tensors="pt")
        trainer.train()
        runs[name] = [
            {key: value for key, value in record.items() if "loss" in key and "train" not in key}
            for record in (*trainer.state.log_history, trainer.evaluate())
        ]
    assert len(runs["padded"]) > 3
    for padded, packed in zip(runs["padded"], runs["packed"], strict=True):
        assert packed == pytest.approx(padded, rel=2e-3)


def test_models_that_look_over_borders_are_refused(make_model, make_trainer, lm_rows):
    hybrid = tiny_model("qwen3_5_text", vocab_size=384)
    trainer = make_trainer(hybrid, make_model(1), lm_rows, attention_loss_weight=0)
    with pytest.raises(
        ValueError, match=r'the student, Qwen3_5.* \(model type "qwen3_5_text"\).*does not keep the docum'
    ):
        trainer.compute_loss(hybrid, flattened(lm_rows[:2]))
    trainer = make_trainer(make_model(0), hybrid, lm_rows, attention_loss_weight=0)
    with pytest.raises(ValueError, match=r"the teacher, Qwen3_5.*does not keep"):
        trainer.compute_loss(trainer.model, flattened(lm_rows[:2]))


@torch.no_grad()
def is_apart(model, batch):
    """Whether another first token changes nothing of the second document."""
    others = {**batch, "input_ids": batch["input_ids"].clone()}
    others["input_ids"][0, 0] += 1
    one, other = (model(**each, use_cache=False).logits[:, 2:] for each in (batch, others))
    return torch.allclose(
        one, other, rtol=0, atol=1e-6
    )  # (experts get other tokens beside them: sums in another order)


# OPT and gpt_oss make their masks without the positions, whatever the attention function; Falcon only in older versions of transformers.
_IS_NEW = Version(transformers.__version__) >= Version("5.24")


@pytest.mark.parametrize(
    ("model_type", "keeps_apart"),
    [("llama", True), ("gpt2", True), ("falcon", True if _IS_NEW else None), ("gemma3_text", True), ("mixtral", True), ("opt", False), ("gpt_oss", False)],
)  # fmt: skip
def test_layouts_of_architectures(model_type, keeps_apart):
    student = apply_bitnet(tiny_model(model_type), BitNetConfig()).train()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "position_ids": torch.tensor([[0, 1, 0, 1]])}
    found = is_apart(tiny_model(model_type).eval(), batch)
    assert keeps_apart is None or found == keeps_apart
    with nullcontext() if found else pytest.raises(ValueError, match="does not keep the documents of a packed batch"):
        check_layout(student, "packed", prepare_batch(batch), "student")
    mask = torch.tensor([[0, 1, 1, 1]])
    check_layout(student, "left", prepare_batch({"input_ids": batch["input_ids"], "attention_mask": mask}), "student")
    assert student.training


def test_positions_that_a_model_ignores(monkeypatch):
    model = tiny_model("gpt2")
    batch = prepare_batch({"input_ids": torch.tensor([[0, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1]])})
    check_layout(model, "left", batch, "student")
    forward = type(model).forward
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, input_ids=None, attention_mask=None: forward(self, input_ids, attention_mask=attention_mask),
    )
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel .*something else when padding stands on the left: pad on the right"
    ):
        check_layout(model, "left", batch, "student")


def test_refused_layouts(models, make_trainer, lm_rows):
    student, teacher = models
    trainer = make_trainer(student, teacher, lm_rows, **OPTIONS)
    packed = flattened(lm_rows[:2])
    separated = {**packed, "labels": packed["labels"].clone()}
    separated["labels"][0, 12] = 2
    with pytest.raises(
        ValueError, match=r"starts at token 12 and its first label is 2.* must be -100 or the token itself"
    ):
        trainer.compute_loss(student, separated)
    mask = torch.ones_like(packed["input_ids"])
    mask[0, -1] = 0
    with pytest.raises(
        ValueError, match=r"packed \(a document starts at token 12 of row 0\) and has an attention_mask with pad"
    ):
        trainer.compute_loss(student, {**packed, "attention_mask": mask})
    index = torch.zeros_like(mask)
    index[0, 3:] = 1
    with pytest.raises(ValueError, match=r"position_ids and seq_idx tell different document borders \(row 0, token 3"):
        trainer.compute_loss(student, {**packed, "seq_idx": index})
    with pytest.raises(
        ValueError, match=r"cu_seq_lens_q must go from 0 to the 17 tokens of the batch, it is \[0, 12\]"
    ):
        trainer.compute_loss(student, {**packed, "cu_seq_lens_q": torch.tensor([0, 12])})
    student.config._attn_implementation_internal = "flash_attention_2"
    two = prepare_batch({"input_ids": torch.ones(2, 4).long(), "position_ids": torch.tensor([[0, 1, 0, 1]] * 2)})
    with pytest.raises(
        ValueError, match="flash_attention_2 reads document borders only in a batch of one row, and this one has 2"
    ):
        check_layout(student, "packed", two, "student")


def test_ordinary_batches_are_left_alone():
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    for batch in (
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(6)[None]},
        {"input_ids": ids, "position_ids": torch.arange(6).expand(3, 2, 6)},
    ):
        prepared = prepare_batch(batch)
        assert isinstance(prepared, PreparedBatch) and prepared.keys() == batch.keys()
        assert all(prepared[key] is batch[key] for key in batch) and prepare_batch(prepared) is prepared


def test_documents_of_a_batch():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    prepared = prepare_batch({"input_ids": torch.ones(2, 5).long(), "position_ids": positions})
    documents = prepared[DOCUMENTS]
    assert documents.tolist() == [[0, 0, 0, 1, 1], [2, 3, 3, 3, 3]]
    targets = within_documents(torch.arange(10).reshape(2, 5), documents)
    assert targets.tolist() == [[0, 1, -100, 3, -100], [-100, 6, 7, 8, -100]]
    labelled = torch.zeros(2, 5, dtype=torch.bool)
    labelled[0, 4] = labelled[1, 1] = True
    tokens = labelled_tokens(documents, labelled)
    assert tokens.tolist() == [[False] * 3 + [True] * 2, [False] + [True] * 4]
    groups = [(places.tolist(), real.tolist()) for places, real in document_groups(documents, tokens)]
    assert groups == [([[3, 4, 4, 4], [6, 7, 8, 9]], [[True, True, False, False], [True] * 4])]
    padding = torch.tensor([[-1, -1, 0, 0], [-1, 1, 1, 1]])
    assert labelled_tokens(padding, padding == 1).tolist() == [[False] * 4, [False, True, True, True]]
    lengths = [1, 30, 2, 15, 16, 40]
    documents = torch.arange(6).repeat_interleave(torch.tensor(lengths))[None]
    shapes = [tuple(places.shape) for places, _ in document_groups(documents, documents >= 0)]
    assert shapes == [(2, 40), (2, 16), (2, 2)]


def test_the_collator_checks_and_a_step_does_not(make_model, make_trainer, lm_rows, monkeypatch):
    student, teacher = make_model(0), make_model(1, max_position_embeddings=16)
    trainer = make_trainer(student, teacher, lm_rows, max_steps=2, eval_dataset=lm_rows, gradient_accumulation_steps=2)
    batch = batch_of(trainer, lm_rows[:2])
    monkeypatch.setattr("hf_bitdistill.training.trainer.check_batch", lambda *args: pytest.fail("checked again"))
    trainer.train()
    trainer.evaluate()
    monkeypatch.undo()
    calls = []
    for model in (student, teacher):
        model.register_forward_hook(lambda *args: calls.append(1))
    # A batch that no collator of ours made is checked in the step.
    for key, value, message in (
        ("labels", 384, "example 0 of the batch, token 11: label 384 is outside the 384 vocabulary"),
        ("input_ids", 384, "example 0 of the batch: token 11 is 384, and the embedding has 384 rows"),
    ):
        wrong = {name: tensor.clone() for name, tensor in batch.items()}
        wrong[key][0, 11] = value
        with pytest.raises(ValueError, match=message):
            trainer.compute_loss(student, wrong)
    for row, message in (
        ({"input_ids": [5] * 17, "labels": [5] * 17}, "has 17 tokens and the teacher's context is 16"),
        ({"input_ids": [], "labels": []}, r"is empty \(0 tokens\)"),
        ({"input_ids": [5] * 3, "labels": [5] * 4}, "has 3 input_ids and 4 labels"),
    ):
        trainer = make_trainer(student, teacher, [row, row], max_steps=1)
        with pytest.raises(ValueError, match=rf"example \d of the batch {message}"):
            trainer.train()
    assert not calls
