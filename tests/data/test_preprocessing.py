import copy

import pytest
import torch
from datasets import Dataset

from hf_bitdistill.data import (
    PromptEncoder,
    batch_by_length,
    batch_for_tokens,
    build_dataset,
    collate,
    ensure_pad_token,
    get_task,
    label_word_ids,
    take_tokens,
)
from hf_bitdistill.data.tasks import TASKS


CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
REVIEWS = Dataset.from_list(
    [
        {"sentence": "a warm and funny film .", "label": 1},
        {"sentence": "a dull story with no ideas .", "label": 0},
        {"sentence": "slow " * 100 + "ending .", "label": 0},
    ]
)
ARTICLES = Dataset.from_list(
    [
        {"document": "The bridge is old. " * 60, "summary": "An old bridge stands. "},
        {"document": "Bread is baked in the morning.", "summary": "Bread is baked."},
    ]
)


def split_example(row):
    prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    answer = [label for label in row["labels"] if label != -100]
    assert row["input_ids"] == prompt + answer
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    return prompt, answer


def test_causal_classification_examples(tiny_tokenizer):
    built = build_dataset("sst2", REVIEWS, tiny_tokenizer, max_length=64)
    assert built.column_names == ["input_ids", "attention_mask", "labels"]
    task = get_task("sst2")
    for row, example in zip(built, REVIEWS, strict=True):
        prompt, answer = split_example(row)
        assert len(row["input_ids"]) <= 64
        assert answer[-1] == tiny_tokenizer.eos_token_id
        assert tiny_tokenizer.decode(answer[:-1]) == " " + task.label_words[example["label"]]
        text = tiny_tokenizer.decode(prompt)
        assert text.startswith("Review: ")
        assert text.endswith("\nSentiment (negative or positive):")
    # What was not cut is the whole text, as the tokenizer writes it in one piece.
    whole = task.format_prompt(REVIEWS[0]) + " positive"
    assert built[0]["input_ids"][:-1] == tiny_tokenizer(whole)["input_ids"]


def test_truncation_fills_the_limit_and_cuts_the_end_of_the_document(tiny_tokenizer):
    built = build_dataset("xsum", ARTICLES, tiny_tokenizer, max_length=80)
    prompt, answer = split_example(built[0])
    assert 76 <= len(built[0]["input_ids"]) <= 80
    text = tiny_tokenizer.decode(prompt)
    document = text.removeprefix("Article: ").removesuffix("\n\nSummary of the article in one sentence:")
    assert len(document) > 20
    assert ARTICLES[0]["document"].startswith(document)
    assert tiny_tokenizer.decode(answer[:-1]) == " An old bridge stands."


def test_other_texts_are_cut_only_after_the_document(tiny_tokenizer):
    encoder = PromptEncoder("mnli", tiny_tokenizer)
    example = {"premise": "one two three four " * 10, "hypothesis": "a stone bridge " * 10}
    fixed = len(encoder.encode_prompts([{"premise": "", "hypothesis": ""}], [500])[0])
    hypothesis_only = len(encoder.encode_prompts([example | {"premise": ""}], [500])[0])

    (some,) = encoder.encode_prompts([example], [hypothesis_only + 5])
    assert f"Hypothesis: {example['hypothesis']}\n" in tiny_tokenizer.decode(some)
    assert "Premise: one" in tiny_tokenizer.decode(some)
    (less,) = encoder.encode_prompts([example], [fixed + 8])
    assert tiny_tokenizer.decode(less).startswith("Premise: \nHypothesis: a stone")
    assert encoder.encode_prompts([example], [fixed - 1]) == [None]


def test_multibyte_text_is_cut_without_looping(tiny_tokenizer):
    encoder = PromptEncoder("sst2", tiny_tokenizer)
    for room in range(60, 30, -1):
        (ids,) = encoder.encode_prompts([{"sentence": "🙂日本語🙂" * 20}], [room])
        assert ids is None or len(ids) <= room


def test_slow_tokenizers_are_cut_too(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(type(tiny_tokenizer), "is_fast", property(lambda self: False))
    (ids,) = PromptEncoder("sst2", tiny_tokenizer).encode_prompts([{"sentence": "slow ending . " * 50}], [50])
    assert 40 <= len(ids) <= 50


def test_answer_that_does_not_fit(tiny_tokenizer):
    rows = Dataset.from_list([*ARTICLES.to_list(), {"document": "Rain.", "summary": "rain " * 100}])
    with pytest.raises(ValueError, match=r"row 2: the answer takes \d+ of max_length 80 tokens"):
        build_dataset("xsum", rows, tiny_tokenizer, max_length=80)
    assert len(build_dataset("xsum", rows, tiny_tokenizer, max_length=80, skip_overlong=True)) == 2
    with pytest.raises(ValueError, match="no example fits"):
        build_dataset("xsum", rows, tiny_tokenizer, max_length=8, skip_overlong=True)


def test_prompts_for_evaluation_leave_room(tiny_tokenizer):
    built = build_dataset("sst2", REVIEWS, tiny_tokenizer, max_length=64, train=False)
    assert set(built.column_names) == {"input_ids", "attention_mask", "label"}
    assert built["label"][:] == [1, 0, 0]
    words = label_word_ids(PromptEncoder("sst2", tiny_tokenizer))
    assert max(map(len, built["input_ids"])) + max(map(len, words)) + 1 <= 64

    built = build_dataset("xsum", ARTICLES, tiny_tokenizer, max_length=80, train=False, max_new_tokens=30)
    assert max(map(len, built["input_ids"])) <= 50
    assert built["reference"][:] == ["An old bridge stands.", "Bread is baked."]


def test_sequence_classification_sees_the_same_prompt(tiny_tokenizer):
    causal = build_dataset("sst2", REVIEWS.select(range(2)), tiny_tokenizer)
    built = build_dataset("sst2", REVIEWS.select(range(2)), tiny_tokenizer, head="sequence_classification")
    assert built["labels"][:] == [1, 0]
    for row, other in zip(built, causal, strict=True):
        assert row["input_ids"] == split_example(other)[0]
    with pytest.raises(ValueError, match="no classes"):
        build_dataset("xsum", ARTICLES, tiny_tokenizer, head="sequence_classification")
    with pytest.raises(ValueError, match="head must be"):
        build_dataset("sst2", REVIEWS, tiny_tokenizer, head="regression")


def test_begin_of_text_is_kept_and_end_of_text_of_the_tokenizer_is_not(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    plain = build_dataset("sst2", REVIEWS, tiny_tokenizer)
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tiny_tokenizer("a")["input_ids"][0] == 1
    marked = build_dataset("sst2", REVIEWS, tiny_tokenizer)
    assert marked[0]["input_ids"] == [1, *plain[0]["input_ids"]]


@pytest.mark.parametrize("use_chat_template", [False, True])
def test_names_of_special_tokens_in_an_example_are_text(tiny_tokenizer, use_chat_template):
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    encoder = PromptEncoder("sst2", tiny_tokenizer, 128, use_chat_template)
    plain, named = ({"sentence": sentence, "label": 1} for sentence in ("a film .", "a </s> film <s> ."))
    [expected], [ids] = (encoder.encode_prompts([example], [128]) for example in (plain, named))
    assert encoder.render(named) == tiny_tokenizer.decode(ids)
    for token in (tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id):
        assert ids.count(token) == expected.count(token)


def test_chat_template(tiny_tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        build_dataset("sst2", REVIEWS, tiny_tokenizer, use_chat_template=True)
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    built = build_dataset("sst2", REVIEWS, tiny_tokenizer, max_length=64, use_chat_template=True)
    prompt, answer = split_example(built[0])
    task = get_task("sst2")
    assert tiny_tokenizer.decode(prompt) == f"<s>user: {task.format_prompt(REVIEWS[0])}</s><s>assistant: "
    assert prompt[0] == tiny_tokenizer.bos_token_id
    assert tiny_tokenizer.decode(answer) == "positive</s>"
    prompt, _ = split_example(built[2])
    assert tiny_tokenizer.decode(prompt).endswith("Sentiment (negative or positive):</s><s>assistant: ")


def test_label_words_that_begin_one_another_get_end_of_text(tiny_tokenizer):
    from dataclasses import replace

    task = replace(TASKS["rte"], label_words=("not", "not entailment"))
    short, long = label_word_ids(PromptEncoder(task, tiny_tokenizer))
    assert short[-1] == long[-1] == tiny_tokenizer.eos_token_id
    assert long[: len(short) - 1] == short[:-1]
    assert all(ids[-1] != 2 for ids in label_word_ids(PromptEncoder("rte", tiny_tokenizer)))


def test_label_words_the_tokenizer_cannot_tell_apart():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Review": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(ValueError, match="cannot tell the label words of task sst2 apart"):
        label_word_ids(PromptEncoder("sst2", tokenizer))


@pytest.mark.parametrize("with_pad", [True, False])
def test_collate_causal_lm(tiny_tokenizer, with_pad):
    tiny_tokenizer.padding_side = "left"
    if not with_pad:
        tiny_tokenizer.pad_token = None
    built = build_dataset("sst2", REVIEWS, tiny_tokenizer, max_length=64)
    batch = collate(tiny_tokenizer, pad_to_multiple_of=8)([built[0], built[2]])
    assert (tiny_tokenizer.pad_token is None, tiny_tokenizer.padding_side) == (not with_pad, "left")
    length, total = len(built[0]["input_ids"]), batch["input_ids"].shape[1]
    assert total % 8 == 0
    assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (total - length)
    assert batch["labels"][0].tolist() == built[0]["labels"] + [-100] * (total - length)
    assert batch["input_ids"][0, length:].unique().tolist() == [0 if with_pad else 2]
    # The real end-of-text is learnt, even where it is also the padding token.
    assert batch["labels"][0, length - 1] == tiny_tokenizer.eos_token_id


def test_collate_sequence_classification(tiny_tokenizer):
    built = build_dataset("sst2", REVIEWS, tiny_tokenizer, head="sequence_classification")
    batch = collate(tiny_tokenizer, "sequence_classification")([built[i] for i in range(3)])
    assert torch.equal(batch["labels"], torch.tensor([1, 0, 0]))
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row["input_ids"]) for row in built]


def test_tokenizers_without_the_needed_tokens(tiny_tokenizer):
    bare = copy.deepcopy(tiny_tokenizer)
    bare.pad_token = bare.eos_token = None
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        ensure_pad_token(bare)
    with pytest.raises(ValueError, match="no end-of-text token"):
        build_dataset("sst2", REVIEWS, bare)
    tiny_tokenizer.pad_token = None
    assert ensure_pad_token(tiny_tokenizer).pad_token_id == tiny_tokenizer.eos_token_id


def test_missing_columns(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"needs the columns \['premise', 'hypothesis'\]"):
        build_dataset("mnli", REVIEWS, tiny_tokenizer)


def test_take_tokens_reads_no_further_than_it_must():
    read = iter([[1, 2], [3], [4, 5], [6]])
    assert take_tokens(read, 3) == [[1, 2], [3]]
    assert next(read) == [4, 5]
    assert take_tokens([[1], [2]], 9) == [[1], [2]]
    assert take_tokens([[1]], 0) == []


def test_batches_by_length(tiny_tokenizer):
    sequences = [[5] * 4, [6] * 2, [7] * 2, [8] * 3]
    first, second = batch_by_length(sequences, 2, tiny_tokenizer)  # the first has the first sequence
    assert first["input_ids"].tolist() == [[8, 8, 8, tiny_tokenizer.pad_token_id], [5] * 4]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 0], [1] * 4]
    assert {name: value.tolist() for name, value in second.items()} == {"input_ids": [[6, 6], [7, 7]]}
    alike = [[number] * 3 for number in range(6)]
    assert [batch["input_ids"][:, 0].tolist() for batch in batch_by_length(alike, 4, tiny_tokenizer)] == [
        [0, 1, 2, 3],
        [4, 5],
    ]


@pytest.mark.parametrize(
    "length,size", [(2000, 1), (1200, 1), (600, 2), (512, 2), (256, 4), (64, 16), (20, 32), (1, 32)]
)
def test_a_batch_of_so_many_tokens(length, size):
    assert batch_for_tokens([[0] * length] * 3, 1200) == size
