"""Classification on the native decoder, and pipelines around both models."""

import pytest
import torch
import transformers
from test_generation import prompts
from transformers import AutoModelForSequenceClassification

from architectures import random_tokens, tiny_config
from hf_bitdistill import apply_bitnet, pack
from hf_bitdistill.runtime import ContextLengthError
from optimum.bitnet import BitNetModelForCausalLM, BitNetModelForSequenceClassification, pipeline
from optimum.bitnet.cache import BitNetCache
from optimum.bitnet.in_transformers import InTransformers
from students import make_student


pytestmark = pytest.mark.usefixtures("native_decoder")


@pytest.fixture
def classifier(tmp_path):
    def make(model_type="llama", **options):
        torch.manual_seed(0)
        config = tiny_config(model_type, num_labels=3, id2label={0: "no", 1: "maybe", 2: "yes"}, **options)
        student = apply_bitnet(AutoModelForSequenceClassification.from_config(config)).eval()
        packed = pack(student, table_bits=32)
        packed.save_pretrained(tmp_path / "classifier")
        return packed, tmp_path / "classifier"

    return make


def test_inputs_that_cannot_be_classified(classifier):
    _, folder = classifier()
    model = BitNetModelForSequenceClassification.from_pretrained(folder)
    tokens, mask = prompts("left")
    for token in (-1, 96):
        tokens[1, 8] = token
        with pytest.raises(IndexError, match=rf"token id {token} \(position 4 of sequence 1\)"):
            model(tokens, attention_mask=mask)
    with pytest.raises(ContextLengthError, match="sequence 0 would have 65 tokens, but the model has 64"):
        model(random_tokens(2, 65))
    mask[1] = 0
    with pytest.raises(ValueError, match="row 1 is empty"):
        model(tokens, attention_mask=mask)


@torch.no_grad()
def test_where_the_decoder_cannot_transformers_does(classifier):
    packed, folder = classifier("gpt2", pad_token_id=0)
    model = BitNetModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(model, InTransformers) and isinstance(model, BitNetModelForSequenceClassification)
    tokens, labels = random_tokens(2, 9), torch.tensor([0, 2])
    expected = packed(input_ids=tokens, labels=labels)
    found = model(tokens, labels=labels)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
    assert torch.equal(model(input_ids=tokens, return_dict=False)[0], expected.logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen3"])
@torch.no_grad()
def test_classes(classifier, side, model_type):
    packed, folder = classifier(model_type)
    model = BitNetModelForSequenceClassification.from_pretrained(folder, head_bits=32, kv_dtype="float32")
    assert model.backend == "native"
    tokens, mask = prompts(side)
    labels = torch.tensor([0, 2])
    ours, theirs = (m(tokens, attention_mask=mask, labels=labels) for m in (model, packed))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=2e-3)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="takes no cache"):
        model(tokens, attention_mask=mask, past_key_values=BitNetCache(model.decoder))
    model.save_pretrained(folder.parent / "again")
    again = BitNetModelForSequenceClassification.from_pretrained(folder.parent / "again", head_bits=32)
    assert again.config.id2label[2] == "yes" and again.score.equal(model.score)


@torch.no_grad()
def test_classes_of_a_text_do_not_depend_on_its_batch(classifier):
    _, folder = classifier(hidden_size=160)
    model = BitNetModelForSequenceClassification.from_pretrained(folder)
    rows = [random_tokens(1, length, seed=length) for length in (9, 4, 1, 13, 6)]
    alone = torch.cat([model(row).logits for row in rows])
    tokens, mask = torch.zeros(2, 5, 13, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : row.shape[1]], mask[number, : row.shape[1]] = row[0], 1
    assert torch.equal(model(tokens, attention_mask=mask).logits, alone)


def test_pipelines(tmp_path, classifier, tiny_tokenizer, caplog):
    folder = tmp_path / "generator"
    pack(make_student(vocab_size=384)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    options = {"max_new_tokens": 4, "do_sample": False}
    logger = transformers.utils.logging.get_logger("transformers.pipelines.base")
    logger.addHandler(caplog.handler)
    try:
        ours = pipeline("text-generation", folder, model_kwargs={"head_bits": 32})
    finally:
        logger.removeHandler(caplog.handler)
    assert not any("is not supported" in record.message for record in caplog.records)
    first = ours("the little robot", **options)
    model = BitNetModelForCausalLM.from_pretrained(folder, head_bits=32)
    other = transformers.pipeline("text-generation", model=model, tokenizer=tiny_tokenizer)
    assert other("the little robot", **options) == first
    assert first[0]["generated_text"].startswith("the little robot")
    batch = other(["a warm film", "the old stone bridge remembers"], batch_size=2, **options)
    assert [len(answers) for answers in batch] == [1, 1]

    _, folder = classifier(vocab_size=384)
    tiny_tokenizer.save_pretrained(folder)
    classify = pipeline("text-classification", folder)
    assert classify("a warm and funny film")[0]["label"] in ("no", "maybe", "yes")
    with pytest.raises(ValueError, match="task 'translation'"):
        pipeline("translation", folder)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        pipeline("text-generation", model)


def test_a_pipeline_loads_what_it_is_told_to(tmp_path, tiny_tokenizer, monkeypatch):
    from optimum.bitnet import pipelines

    pack(make_student("llama", vocab_size=384)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    asked = {}
    load = pipelines.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        pipelines.AutoTokenizer, "from_pretrained", lambda name, **hub: asked.update(tokenizer=hub) or load(name)
    )
    made = BitNetModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        BitNetModelForCausalLM, "from_pretrained", lambda name, **given: asked.update(model=given) or made(name)
    )
    options = {"revision": "v1", "token": "hf_secret"}
    pipeline("text-generation", model=str(tmp_path), dtype=torch.float32, model_kwargs={"head_bits": 8}, **options)
    assert asked["tokenizer"] == options and asked["model"] == {**options, "dtype": torch.float32, "head_bits": 8}
    monkeypatch.undo()
    with pytest.raises((TypeError, ValueError), match="device_map"):
        pipeline("text-generation", model=str(tmp_path), device_map="cuda")
