import copy
import dataclasses
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.modeling_outputs import CausalLMOutput

from hf_bitdistill.data import PromptEncoder, build_dataset, collate, get_task, label_word_ids, load_task_dataset
from hf_bitdistill.evaluation import evaluate_task


REVIEWS = Dataset.from_list(
    [
        {
            "sentence": f"{'a warm and funny film' if i % 3 else 'a dull and slow story'} {'so ' * (i % 5)}.",
            "label": int(i % 3 > 0),
        }
        for i in range(12)
    ]
)
PAIRS = Dataset.from_list(
    [
        {"premise": f"the {'old ' * (i % 4)}bridge is long .", "hypothesis": "a bridge is old .", "label": i % 3}
        for i in range(7)
    ]
)
ARTICLES = Dataset.from_list(
    [
        {"document": "nobody remembers who built the old stone bridge . " * (i + 1), "summary": f"bridge {i} is old ."}
        for i in range(3)
    ]
)


@pytest.fixture
def model(tiny_llama_config):
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config)


def naive_scores(model, tokenizer, task, dataset):
    """One example, one word, one token at a time: log p of the first token, then of each among those that words beginning alike have."""
    encoder = PromptEncoder(task, tokenizer)
    words = label_word_ids(encoder)
    scores = torch.zeros(len(dataset), encoder.task.num_labels)
    for row, example in enumerate(dataset):
        prompt = tokenizer(get_task(task).format_prompt(example))["input_ids"]
        for index, word in enumerate(words):
            for at, token in enumerate(word):
                with torch.no_grad():
                    logits = model.eval()(input_ids=torch.tensor([prompt + word[:at]])).logits[0, -1]
                allowed = sorted({other[at] for other in words if other[:at] == word[:at]})
                scores[row, index] += (
                    logits.log_softmax(-1)[token] if at == 0 else logits[allowed].log_softmax(-1)[allowed.index(token)]
                )
    return scores


# Words of several lengths that share their first tokens; one is the beginning of another.
ALIKE = dataclasses.replace(
    get_task("mnli"), name="alike", label_words=("the old bridge", "the old", "the old bridge is very slow")
)


@pytest.mark.parametrize(("task", "dataset"), [("sst2", REVIEWS), ("mnli", PAIRS), (ALIKE, PAIRS)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_label_words_are_compared_by_likelihood(model, tiny_tokenizer, task, dataset, batch_size):
    from hf_bitdistill.evaluation.likelihood import label_word_scores

    expected = naive_scores(model, tiny_tokenizer, task, dataset)
    built = build_dataset(task, dataset, tiny_tokenizer, train=False)
    words = label_word_ids(PromptEncoder(task, tiny_tokenizer))
    assert len({len(word) for word in words}) > 1 or task == "sst2"
    order = torch.randperm(len(dataset)).tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with torch.no_grad():
        scores, tokens = label_word_scores(model, tiny_tokenizer, built["input_ids"][:], words, batches)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert tokens >= sum(map(len, built["input_ids"]))

    model.train()
    result = evaluate_task(model, tiny_tokenizer, task, dataset, batch_size, progress=False, return_predictions=True)
    assert model.training
    assert result["predictions"] == expected.argmax(-1).tolist()
    labels = dataset["label"][:]
    assert result["accuracy"] == pytest.approx(
        sum(p == r for p, r in zip(result["predictions"], labels, strict=True)) / len(labels)
    )
    assert result["chance_level"] == pytest.approx(max(map(labels.count, labels)) / len(labels))
    assert (result["n"], result["task"]) == (len(dataset), get_task(task).name)
    assert result["seconds"] > 0 and result["tokens_per_second"] > 0


class Fixed(torch.nn.Module):
    """A model whose next token depends on the one before it alone."""

    def __init__(self, table):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(table).log())

    def forward(self, input_ids, attention_mask):
        return CausalLMOutput(logits=self.logits[input_ids])


def test_the_number_of_tokens_gives_no_word_an_advantage(tiny_tokenizer):
    from hf_bitdistill.evaluation.likelihood import label_word_scores

    # After 0: 1 with 0.45, 2 with 0.4. After 1: 3 with 0.9; after 3: 4 with 0.9.
    table = [
        [0.05, 0.45, 0.4, 0.05, 0.05],
        [0.04, 0.02, 0.02, 0.9, 0.02],
        [0.2] * 5,
        [0.04, 0.02, 0.02, 0.02, 0.9],
        [0.2] * 5,
    ]

    def score(*words):
        scores, read = label_word_scores(Fixed(table), tiny_tokenizer, [[0]], words, [[0]])
        return scores[0].exp().tolist(), read

    # Where 1 is the likelier beginning, the sum of its word's logs would lose against 2 ...
    assert 0.45 * 0.9**2 < 0.4
    for word in ([1], [1, 3], [1, 3, 4]):
        assert score(word, [2]) == (pytest.approx([0.45, 0.4]), 1)
    # ... and where it is not, their mean would win.
    table[0][1:3] = 0.3, 0.55
    assert (0.3 * 0.9**2) ** (1 / 3) > 0.55
    assert score([1, 3, 4], [2])[0] == pytest.approx([0.3, 0.55])
    # Words that begin alike share what their beginning has; nothing is lost to words that are no labels.
    found, read = score([1, 3, 4], [1, 0], [2])
    assert found == pytest.approx([0.3 * 0.9 / 0.94, 0.3 * 0.04 / 0.94, 0.55]) and read == 2
    # Words of one token: bit for bit their log-likelihoods.
    scores, _ = label_word_scores(Fixed(table), tiny_tokenizer, [[0], [3]], [[1], [2]], [[0, 1]])
    with torch.no_grad():
        expected = Fixed(table).logits[[0, 3]].log_softmax(-1)[:, [1, 2]]
    assert torch.equal(scores, expected)


def test_words_that_share_their_beginning_share_a_pass():
    from hf_bitdistill.evaluation.likelihood import _deciding, _paths

    assert _deciding([[5, 1], [5, 2, 3], [9], [7, 8]])[0] == [[5, 1], [5, 2], [9], [7]]
    assert _paths([[5], [6]]) == ([[]], [0, 0])
    assert _paths([[5, 1], [5, 2, 3], [9], [7, 8]]) == ([[5, 2], [7]], [0, 0, 0, 1])


def test_scores_without_a_padding_token_are_the_same(model, tiny_tokenizer):
    expected = evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, progress=False, return_predictions=True)
    tiny_tokenizer.pad_token = None
    tiny_tokenizer.padding_side = "left"
    found = evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, progress=False, return_predictions=True)
    assert found["predictions"] == expected["predictions"]
    assert (tiny_tokenizer.pad_token, tiny_tokenizer.padding_side) == (None, "left")


def test_a_model_without_logits_to_keep(tiny_tokenizer, model):
    class Plain(torch.nn.Module):
        config = model.config

        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask):
            return CausalLMOutput(logits=self.inner(input_ids=input_ids, attention_mask=attention_mask).logits)

    plain = evaluate_task(Plain(), tiny_tokenizer, "mnli", PAIRS, progress=False, return_predictions=True)
    usual = evaluate_task(model, tiny_tokenizer, "mnli", PAIRS, progress=False, return_predictions=True)
    assert plain["predictions"] == usual["predictions"]


def test_a_trained_model_is_found_better_than_chance(model, tiny_tokenizer):
    built = build_dataset("sst2", REVIEWS, tiny_tokenizer)
    batch = collate(tiny_tokenizer)(built.to_list())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(25):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, progress=False)
    assert result["accuracy"] == 1.0 > result["chance_level"] == pytest.approx(8 / 12)


@pytest.mark.parametrize("metric", ["token_accuracy", "perplexity"])
def test_given_answers_are_predicted_token_by_token(model, tiny_tokenizer, metric):
    task = dataclasses.replace(get_task("xsum"), metric=metric, max_length=200)
    rows = ARTICLES.select(range(2))
    hits, losses = [], []
    for row in rows:
        prompt = tiny_tokenizer(task.format_prompt(row))["input_ids"]
        answer = [*tiny_tokenizer(f" {row['summary']}")["input_ids"], tiny_tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        hits.append((logits.argmax(-1) == torch.tensor(answer)).tolist())
        losses.append((-logits.log_softmax(-1)[range(len(answer)), answer]).tolist())
    tokens = [len(each) for each in losses]
    total = sum(tokens)
    ratio = sum(map(sum, losses)) / total
    error = sum((sum(each) - ratio * len(each)) ** 2 for each in losses) ** 0.5 / total
    result = evaluate_task(model, tiny_tokenizer, task, rows, progress=False, return_predictions=True)
    assert result["token_accuracy"] == pytest.approx(sum(map(sum, hits)) / total)
    assert result["perplexity"] == pytest.approx(math.exp(ratio), rel=1e-4)
    assert result["perplexity_stderr"] == pytest.approx(math.exp(ratio) * error, rel=1e-3)
    assert (result["n"], result["tokens"]) == (2, total) and list(map(len, result["predictions"])) == tokens
    # What knowing the answers' tokens, and not the texts, would give.
    answers = [token for row in build_dataset(task, rows, tiny_tokenizer)["labels"] for token in row if token >= 0]
    shares = [answers.count(token) / total for token in set(answers)]
    assert result["chance_level"] == pytest.approx(max(shares))
    assert result["chance_perplexity"] == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))


def test_what_a_model_scores_that_does_not_look(model, tiny_tokenizer):
    def levels(task, rows, **changes):
        task = dataclasses.replace(get_task(task), **changes)
        result = evaluate_task(model, tiny_tokenizer, task, rows, progress=False)
        return result["chance_level"], result.get("random_level")

    # Of 12 reviews 8 are positive: always saying so has a recall of 1 and a precision of 2/3 for one class, nothing for the other.
    assert levels("sst2", REVIEWS) == (pytest.approx(2 / 3), 0.5)
    expected = (2 * (2 / 3) * 0.5 / (2 / 3 + 0.5) + 2 * (1 / 3) * 0.5 / (1 / 3 + 0.5)) / 2
    assert levels("sst2", REVIEWS, metric="f1") == (pytest.approx(0.8 / 2), pytest.approx(expected))
    assert levels("sst2", REVIEWS, metric="matthews_correlation") == (0.0, 0.0)
    same = Dataset.from_list([{"document": "rain", "summary": text} for text in ("wet", "wet", "dry")])
    short = {"max_new_tokens": 2, "max_length": 60}
    assert levels("xsum", same, metric="exact_match", **short) == (pytest.approx(2 / 3), None)
    assert levels("xsum", same, **short) == (None, None)


def test_sequence_classification(tiny_tokenizer, tiny_llama_config):
    torch.manual_seed(0)
    config = copy.deepcopy(tiny_llama_config)
    config.num_labels = 3
    classifier = LlamaForSequenceClassification(config).eval()
    classifier.config.pad_token_id = None
    tiny_tokenizer.pad_token = None
    options = {"head": "sequence_classification", "progress": False, "return_predictions": True}
    result = evaluate_task(classifier, tiny_tokenizer, "mnli", PAIRS, 3, **options)
    expected = []
    for row in build_dataset("mnli", PAIRS, tiny_tokenizer, head="sequence_classification"):
        with torch.no_grad():
            expected.append(classifier(input_ids=torch.tensor([row["input_ids"]])).logits.argmax().item())
    assert result["predictions"] == expected
    assert classifier.config.pad_token_id is None
    with pytest.raises(ValueError, match="the model has 3 classes, task sst2 has 2: negative, positive"):
        evaluate_task(classifier, tiny_tokenizer, "sst2", REVIEWS, **options)


def test_summaries_are_greedy_and_do_not_depend_on_the_batch(model, tiny_tokenizer):
    options = {"max_length": 160, "max_new_tokens": 12, "progress": False, "return_predictions": True}
    together = evaluate_task(model, tiny_tokenizer, "xsum", ARTICLES, 3, **options)
    alone = evaluate_task(model, tiny_tokenizer, "xsum", ARTICLES, 1, **options)
    assert together["predictions"] == alone["predictions"]
    assert together["rougeLsum"] == alone["rougeLsum"]
    assert set(together) >= {"rouge1", "rouge2", "rougeL", "rougeLsum", "n", "seconds", "tokens_per_second"}
    assert together["chance_level"] is None

    prompt = build_dataset("xsum", ARTICLES, tiny_tokenizer, 160, train=False, max_new_tokens=12)[0]["input_ids"]
    ids = list(prompt)
    for _ in range(12):
        with torch.no_grad():
            ids.append(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == tiny_tokenizer.eos_token_id:
            ids.pop()
            break
    assert together["predictions"][0] == tiny_tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_a_summary_ends_at_end_of_text(model, tiny_tokenizer):
    class Parrot:
        """Generates the reference, end-of-text, and then rubbish."""

        config, device, training = model.config, torch.device("cpu"), False

        def generate(self, input_ids, attention_mask, generation_config):
            assert generation_config.max_new_tokens == 64 and not generation_config.do_sample
            assert (attention_mask[:, -1] == 1).all()
            answers = [tiny_tokenizer(" bridge 0 is old ." + end)["input_ids"] for end in ("</s>", "</s><pad>oops")]
            longest = max(map(len, answers))
            rows = [ids + [0] * (longest - len(ids)) for ids in (answers * 2)[: len(input_ids)]]
            return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    same = ARTICLES.select([0, 0])
    result = evaluate_task(Parrot(), tiny_tokenizer, "xsum", same, progress=False, return_predictions=True)
    assert result["predictions"] == ["bridge 0 is old ."] * 2
    assert result["rouge1"] == result["rougeLsum"] == 1.0


def test_bad_input(model, tiny_tokenizer):
    with pytest.raises(ValueError, match="unknown task"):
        evaluate_task(model, tiny_tokenizer, "sts", REVIEWS)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, 0)
    with pytest.raises(ValueError, match="needs the columns"):
        evaluate_task(model, tiny_tokenizer, "sst2", PAIRS)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="label-word scores are not finite"):
        evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, progress=False)
    assert model.training


def test_progress_can_be_turned_off(model, tiny_tokenizer, capfd):
    from datasets import are_progress_bars_disabled

    evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, max_length=100, progress=False)
    assert capfd.readouterr().err == ""
    assert not are_progress_bars_disabled()
    evaluate_task(model, tiny_tokenizer, "sst2", REVIEWS, max_length=101)
    assert "sst2 evaluation: 100%" in capfd.readouterr().err


def test_real_model_on_real_data(shared_dir):
    from transformers import AutoTokenizer

    folder = shared_dir / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    dataset = load_task_dataset("sst2", "validation", data_dir=shared_dir / "data", max_samples=32)
    one = evaluate_task(model, tokenizer, "sst2", dataset, 1, progress=False, return_predictions=True)
    many = evaluate_task(model, tokenizer, "sst2", dataset, 16, progress=False, return_predictions=True)
    assert one["predictions"] == many["predictions"]
    assert one["n"] == 32


def test_what_does_not_fit_the_model(model, tiny_tokenizer, tiny_llama_config):
    length = max(map(len, build_dataset("sst2", REVIEWS, tiny_tokenizer, train=False)["input_ids"]))
    tight = type(tiny_llama_config)(**{**tiny_llama_config.to_dict(), "max_position_embeddings": length - 1})
    with pytest.raises(ValueError, match=rf"example \d+.* has \d+ tokens and the model's context is {length - 1} "):
        evaluate_task(LlamaForCausalLM(tight), tiny_tokenizer, "sst2", REVIEWS, progress=False)
    with pytest.raises(
        ValueError, match=r"example 0, with 250 for the answer, has \d+ tokens and the model's context is 256"
    ):
        evaluate_task(model, tiny_tokenizer, "xsum", ARTICLES, max_new_tokens=250, max_length=512, progress=False)
    narrow = type(tiny_llama_config)(**{**tiny_llama_config.to_dict(), "vocab_size": 60})
    with pytest.raises(ValueError, match=r"example 0: token \d+ is \d+, and the embedding has 60 rows"):
        evaluate_task(LlamaForCausalLM(narrow), tiny_tokenizer, "sst2", REVIEWS, progress=False)
    hidden = REVIEWS.map(lambda row: {"label": -1})
    for head in ("causal_lm", "sequence_classification"):
        with pytest.raises(
            ValueError, match="example 0 has the label -1, and the classes of sst2 are 0 to 1: the split has no lab"
        ):
            evaluate_task(model, tiny_tokenizer, "sst2", hidden, head=head, progress=False)
    several = copy.deepcopy(tiny_llama_config)
    several.num_labels, several.problem_type = 2, "multi_label_classification"
    classifier = LlamaForSequenceClassification(several)
    with pytest.raises(ValueError, match="problem_type='multi_label_classification': its outputs are no classes"):
        evaluate_task(classifier, tiny_tokenizer, "sst2", REVIEWS, head="sequence_classification", progress=False)
