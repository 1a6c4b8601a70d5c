"""What does not fit a model is refused with what, where and the value; what fits passes untouched."""

import pickle

import pytest
import torch
from transformers import (
    BloomConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    MambaConfig,
)

from architectures import tiny_config, tiny_model
from hf_bitdistill.data.batch_checks import CheckedCollator, ModelLimits, check_batch, check_examples, context_length
from hf_bitdistill.data.batches import PreparedBatch, prepare_batch


LIMITS = ModelLimits(vocabulary=96, classes=96, context=8)


def batch_of(**values):
    return prepare_batch({key: torch.tensor(value) for key, value in values.items()})


def test_context_length():
    assert context_length(tiny_config("llama")) == 64
    assert context_length(tiny_config("gpt2")) == 64
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    assert context_length(tiny_config("llama", rope_parameters=scaled)) == 128
    assert context_length(tiny_config("llama", rope_parameters={**scaled, "factor": 1.5})) == 64
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    assert context_length(tiny_config("qwen2", rope_parameters=linear)) == 128
    by_layer = {"full_attention": linear, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    assert context_length(tiny_config("gemma3_text", rope_parameters=by_layer)) == 128
    assert context_length(tiny_config("falcon", alibi=True)) is None
    assert context_length(MambaConfig()) is None and context_length(BloomConfig()) is None


def test_limits_of_models():
    models = {
        "student": tiny_model("llama"),
        "teacher": tiny_model("llama", vocab_size=90, max_position_embeddings=32),
    }
    limits = ModelLimits.of(models)
    assert limits == ModelLimits(vocabulary=90, classes=96, context=32, context_of="teacher")
    assert ModelLimits.of({"model": models["student"]}) == ModelLimits(96, 96, 64, "model")
    models["student"].config.num_labels = 3
    assert ModelLimits.of(models, "sequence_classification").classes == 3
    with pytest.raises(
        ValueError, match=r"a block has 33 tokens and the teacher's context is 32 \(max_position_embeddings"
    ):
        limits.check_length(33, "a block")
    limits.check_length(32, "a block")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": [[1, 2], [3, 96]]}, r"example 1 of the batch: token 1 is 96, and the embedding has 96 rows"),
        ({"input_ids": [[1, -1]]}, "example 0 of the batch: token 1 is -1"),
        ({"input_ids": [[1.0, 2.0]]}, r"input_ids must be integers, they are torch\.float32"),
        ({"input_ids": [[], []]}, r"the batch is empty: input_ids of shape \(2, 0\)"),
        ({"input_ids": [[1, 2], [0, 0]], "attention_mask": [[1, 1], [0, 0]]}, "example 1 of the batch is empty"),
        ({"input_ids": [[1] * 9]}, "example 0 of the batch has 9 tokens and the model's context is 8"),
        (
            {"input_ids": [[1] * 9] * 2, "attention_mask": [[1] * 3 + [0] * 6, [1] * 9]},
            "example 1 of the batch has 9 tokens and",
        ),
        ({"input_ids": [[1] * 9], "attention_mask": [[1] * 3 + [0] * 6]}, "the padded batch has 9 tokens"),
        (
            {"input_ids": [[1] * 11], "position_ids": [[0, *range(10)]]},
            "longest sequence of example 0 .* has 10 tokens",
        ),
        (
            {"input_ids": [[1, 2]], "labels": [[1, 96]]},
            "example 0 of the batch, token 1: label 96 is outside the 96 vocab",
        ),
        ({"input_ids": [[1, 2]], "labels": [[-1, 2]]}, "token 0: label -1 is outside .* or -100 for none"),
        ({"input_ids": [[1, 2]], "labels": [[-100, -101]]}, "token 1: label -101 is outside"),
        (
            {"input_ids": [[1, 2]], "labels": [[0.5, 1.0]]},
            r"labels are torch\.float32 of shape \(1, 2\).*one integer label",
        ),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, r"labels of shape \(1, 1\) do not fit input_ids of shape \(1, 2\)"),
        (
            {"input_ids": [[1, 0]], "attention_mask": [[1, 0]], "labels": [[1, 0]]},
            "token 1 is padding .* and has the label 0: padding must have the label -100",
        ),
    ],
)
def test_refused_batches(batch, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch_of(**batch), LIMITS, "causal_lm")


def test_classification_labels():
    limits = ModelLimits(vocabulary=96, classes=3, context=None)
    ids = [[1] * 20] * 2
    check_batch(batch_of(input_ids=ids, labels=[2, -100]), limits, "sequence_classification")
    for value in (3, -1):
        with pytest.raises(
            ValueError, match=rf"example 1 of the batch: label {value} is outside the 3 classes \(num_labels\)"
        ):
            check_batch(batch_of(input_ids=ids, labels=[0, value]), limits, "sequence_classification")
    with pytest.raises(ValueError, match=r"labels are torch\.float32"):
        check_batch(batch_of(input_ids=ids, labels=[0.0, 1.0]), limits, "sequence_classification")
    packed = batch_of(input_ids=[[1, 2, 3, 4]], position_ids=[[0, 1, 0, 1]], labels=[1])
    with pytest.raises(ValueError, match="a classification head has one output a row: pad one document a row"):
        check_batch(packed, limits, "sequence_classification")


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": [[1] * 8, [95] * 8], "labels": [[-100] * 8, [95] * 8]},
        {"input_ids": [[1, 2, 0]], "attention_mask": [[1, 1, 0]], "labels": [[-100, 2, -100]]},
        {"input_ids": [[1] * 16], "position_ids": [[*range(8)] * 2], "labels": [[-100, *[1] * 7] * 2]},
        {"input_ids": [[1, 2]], "shift_labels": [[2, -100]]},
        {"inputs_embeds": [[[0.5], [0.25]]], "labels": [[1, 2]]},
    ],
)
def test_batches_that_fit(batch):
    check_batch(batch_of(**batch), LIMITS, "causal_lm")


def test_examples():
    good = {"input_ids": [1, 2], "labels": [1, 2]}
    check_examples([good, torch.ones(2), {"text": ""}, {"input_ids": [1], "labels": 0}], "sequence_classification")
    with pytest.raises(ValueError, match=r"example 1 of the batch is empty \(0 tokens\)"):
        check_examples([good, {"input_ids": []}], "causal_lm")
    for labels in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"example 1 of the batch has 2 input_ids and {len(labels)} labels"):
            check_examples([good, {"input_ids": torch.tensor([1, 2]), "labels": labels}], "causal_lm")


def test_collator(tiny_tokenizer):
    """In front of a collator that pads, and of one that drops empty examples."""
    collator = CheckedCollator(DataCollatorForSeq2Seq(tiny_tokenizer), LIMITS, "causal_lm")
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = pickle.loads(pickle.dumps(collator))([dict(row) for row in rows])
    assert isinstance(batch, PreparedBatch) and batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert collator.label_pad_token_id == -100
    with pytest.raises(AttributeError):
        _ = collator.nothing
    # Padded labels of both would be three wide.
    with pytest.raises(ValueError, match="example 1 of the batch has 1 input_ids and 3 labels"):
        collator([rows[0], {"input_ids": [4], "labels": [4, 5, 6]}])
    flattening = CheckedCollator(DataCollatorWithFlattening(return_tensors="pt"), LIMITS, "causal_lm")
    with pytest.raises(ValueError, match="example 0 of the batch is empty"):
        flattening([{"input_ids": [], "labels": []}, rows[0]])
    assert flattening(rows)["document_ids"].tolist() == [[0, 0, 0, 1]]
    padding = CheckedCollator(
        DataCollatorWithPadding(tiny_tokenizer), ModelLimits(96, 3, 8), "sequence_classification"
    )
    with pytest.raises(ValueError, match="label 7 is outside the 3 classes"):
        padding([{"input_ids": [1], "attention_mask": [1], "labels": 7}])
    assert CheckedCollator(lambda examples: tuple(examples), LIMITS, "causal_lm")([1]) == (1,)
