import gzip
import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_bitdistill.data.cleaning import NO_LABEL, read_usable, usable_rows
from hf_bitdistill.data.recognition import check_read, recognize
from hf_bitdistill.data.sources import load_examples
from hf_bitdistill.data.task_loading import task_rows
from hf_bitdistill.data.tasks import TASKS, task_of


TEXTS = [f"text number {i} ." for i in range(12)]


def rows(**columns):
    return Dataset.from_dict({"text": TEXTS, **columns})


def test_conventions_of_the_ecosystem():
    message = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 12
    assert recognize(Dataset.from_dict({"messages": message}), "x").kind == "messages"
    pairs = {"prompt": TEXTS, "completion": TEXTS}
    assert recognize(Dataset.from_dict(pairs), "x").columns == ("prompt", "completion")
    assert recognize(rows(), "x").kind == "text"
    named = Features({"text": Value("string"), "label": ClassLabel(names=["not_good", "good"])})
    found = recognize(rows(label=[0, 1] * 6).cast(named), "owner/reviews")
    assert found.columns == ("text", "label")
    assert found.task.name == "reviews"
    assert found.task.label_words == ("not good", "good")
    assert found.task.prompt == "Text: {text}\nLabel (not good or good):"


def test_pairs_and_own_names():
    pair = Dataset.from_dict(
        {"premise": TEXTS, "hypothesis": TEXTS, "label": ["yes", "no", "maybe"] * 4, "idx": TEXTS}
    )
    task = recognize(pair, "nli.csv").task
    assert task.text_fields == ("premise", "hypothesis")
    assert task.label_words == ("maybe", "no", "yes")
    assert task_rows(pair, task, "nli.csv")["label"][:3] == [2, 1, 0]
    own = Dataset.from_dict({"ticket": TEXTS, "other": TEXTS, "team": [7, 3, 5] * 4})
    with pytest.raises(ValueError, match="columns ticket, other, team do not say what is the prompt"):
        recognize(own, "tickets.csv")
    found = recognize(own, "tickets.csv", text_columns=["ticket"], label_column="team", label_words=["a", "b", "c"])
    assert task_rows(own, found.task, "x")["team"][:3] == [2, 0, 1]
    assert found.task.prompt == "Ticket: {ticket}\nTeam (a, b or c):"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.5] * 6, "regression is not supported"),
        (list(range(12)), "12 different values in 12 rows: it holds quantities or texts, not classes"),
        (["same"] * 12, "has 1 different values; two classes are needed"),
        ([-1] * 12, "all labels are hidden"),
        (
            ["1.5", "2.25", "3.5"] * 4,
            "3 different numbers from 1.5 to 3.5: a quantity and no class, and regression is not supported",
        ),
    ],
)
def test_what_are_no_classes_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        recognize(rows(label=labels), "x")
    with pytest.raises(ValueError, match="x has no column 'gone'; it has text, label"):
        recognize(rows(label=labels), "x", label_column="gone")


def write(path, count=20):
    data = Dataset.from_dict({"text": [f"row {i}" for i in range(count)], "label": [i % 2 for i in range(count)]})
    lines = "".join(json.dumps(row) + "\n" for row in data)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in data))
    elif path.suffix == ".csv":
        data.to_csv(path)
    elif path.suffix == ".parquet":
        data.to_parquet(path)
    elif path.suffix == ".arrow":
        data.save_to_disk(path.parent / "saved")
        next((path.parent / "saved").glob("*.arrow")).rename(path)
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_one_file_of_any_format(tmp_path, name):
    first, again = (load_examples(write(tmp_path / name)) for _ in range(2))
    assert first.held_out_from_train
    assert (len(first.train), len(first.validation)) == (18, 2)
    assert first.validation["text"][:] == again.validation["text"][:]
    assert not set(first.validation["text"]) & set(first.train["text"])


def test_folders(tmp_path):
    write(tmp_path / "train.csv")
    assert load_examples(tmp_path).held_out_from_train
    write(tmp_path / "test.csv", 5)
    write(tmp_path / "dev.csv", 7)
    examples = load_examples(tmp_path)
    assert (len(examples.train), len(examples.validation), examples.held_out_from_train) == (20, 7, False)
    assert len(load_examples(tmp_path, validation_split="test").validation) == 5
    with pytest.raises(FileNotFoundError, match="has no split 'gone'; it has dev, test, train"):
        load_examples(tmp_path, validation_split="gone")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_examples("./gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no data files"):
        load_examples(tmp_path / "empty")


def test_saved_to_disk(tmp_path):
    data = Dataset.from_dict({"text": TEXTS})
    data.save_to_disk(tmp_path / "one")
    assert len(load_examples(tmp_path / "one").train) == 11
    DatasetDict({"train": data, "validation": data.select(range(3))}).save_to_disk(tmp_path / "two")
    assert len(load_examples(tmp_path / "two").validation) == 3
    with pytest.raises(ConnectionError, match="cannot be loaded from the Hub"):
        load_examples("some-owner/some-data")


def test_numbers_as_labels():
    def many(numbers):
        values = list(numbers) * 3
        return Dataset.from_dict({"text": [f"text {i}" for i in range(len(values))], "label": values})

    for labels in ([0, 1] * 6, ["0", "1"] * 6, [1, 2, 5] * 4):
        found = recognize(rows(label=labels), "x")
        assert "the answers are the numbers" in found.notes[0] and "--label_words" in found.notes[0]
    named = Features({"text": Value("string"), "label": ClassLabel(names=["0", "1"])})
    assert recognize(rows(label=[0, 1] * 6).cast(named), "x").notes
    assert recognize(rows(label=[0, 1] * 6), "x", label_words=["no", "yes"]).notes == ()
    assert recognize(rows(label=["a", "1"] * 6), "x").notes == ()
    # Many numbers are classes only where they count them.
    assert recognize(many(range(77)), "x").task.num_labels == 77
    prices = many(range(100, 400, 10))
    with pytest.raises(ValueError, match="30 different numbers from 100 to 390: a quantity and no class"):
        recognize(prices, "x")
    assert recognize(prices, "x", label_words=[f"w{i}" for i in range(30)]).task.num_labels == 30


def test_rows_to_train_on_are_measured_on_only_by_name(tmp_path):
    for name, text in (("validation", "v"), ("test", "t")):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{text}{i},{i % 2}\n" for i in range(20)))
    found = load_examples(tmp_path, train_split="validation")
    assert found.train["text"][0] == "v0" and found.validation["text"][0] == "t0"
    (tmp_path / "validation.csv").unlink()
    (tmp_path / "extra.csv").write_text("text,label\na,0\nb,1\n")
    found = load_examples(tmp_path, train_split="test")
    assert found.held_out_from_train and not set(found.train["text"]) & set(found.validation["text"])
    assert load_examples(tmp_path, train_split="test", validation_split="test").validation["text"][0] == "t0"


@pytest.mark.parametrize("words", [None, ["fine", "spam"]])
def test_true_and_false_are_two_classes(tmp_path, words):
    file = tmp_path / "mail.csv"
    file.write_text("text,spam\n" + "".join(f"text {i},{i % 2 == 1}\n" for i in range(12)))
    loaded, _ = read_usable([file])
    assert loaded.features["spam"].dtype == "bool"
    task = recognize(loaded, "mail.csv", label_column="spam", label_words=words).task
    assert task.label_words == tuple(words or ("false", "true")) and task.label_values == ("false", "true")
    holes = Dataset.from_dict({"text": TEXTS, "spam": [False, True, None, True] * 3})
    for dataset, missing in ((loaded, {}), (holes, {NO_LABEL: 3})):
        kept, left_out = usable_rows(dataset, task)
        assert kept["spam"][:2] == [0, 1] and left_out == missing
    # A task file may spell them as the file does.
    own = task_of({"prompt": "{text} =>", "target": "spam", "labels": {"True": "bad", "False": "good"}}, "own.yaml")
    assert usable_rows(loaded, own)[0]["spam"][:3] == [1, 0, 1]


def test_a_built_in_task_is_known_by_its_name_and_columns():
    films = Dataset.from_dict({"sentence": TEXTS, "label": [0, 1] * 6})
    for source, config in (("../data/sst2", None), ("owner/sst2", None), ("nyu-mll/glue", "sst2")):
        found = recognize(films, source, config_name=config)
        assert (found.kind, found.columns, found.task) == ("task", ("sentence", "label"), TASKS["sst2"])
    for options in ({"label_words": ["bad", "good"]}, {"text_columns": ["sentence"]}, {"label_column": "label"}):
        assert recognize(films, "sst2", **options).task.prompt.startswith("Sentence: {sentence}")
    other = films.rename_column("sentence", "text")
    assert recognize(other, "sst2").task.prompt.startswith("Text: {text}")
    assert recognize(films, "films").task.prompt.startswith("Sentence: {sentence}")


def test_options_of_another_kind_of_data_are_refused():
    check_read("messages", "x", "last")
    check_read("task", "x", "all", use_chat_template=True)
    with pytest.raises(ValueError, match=r"turns 'last' is read of conversations alone .* x holds plain text"):
        check_read("text", "x", "last")
    with pytest.raises(ValueError, match="use_chat_template is read of a task alone, and x holds conversations"):
        check_read("messages", "x", "all", use_chat_template=True)


def test_words_for_classes_without_classes():
    reviews = Dataset.from_dict({"review": ["a", "b"], "sentiment": ["x", "y"]})
    with pytest.raises(ValueError, match="words for classes, and no column with a label among review, sentiment"):
        recognize(reviews, "imdb.csv", label_words=["bad", "good"])
    with pytest.raises(ValueError, match="several texts, and no column with a label"):
        recognize(reviews, "imdb.csv", text_columns=["review", "sentiment"])
    (note,) = recognize(reviews, "imdb.csv").notes
    assert "taken for plain text; sentiment not read" in note
    chats = Dataset.from_dict({"messages": [[{"role": "user", "content": "a"}]]})
    with pytest.raises(ValueError, match="words for classes, and the columns are those of messages"):
        recognize(chats, "chats", label_words=["bad", "good"])
