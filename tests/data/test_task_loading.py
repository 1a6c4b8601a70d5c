import gzip
import json

import pytest
from datasets import Dataset

from hf_bitdistill.data import Task, load_task_dataset


ROWS = [
    {"sentence": "a bright and generous comedy .", "label": 1},
    {"sentence": "two hours that feel like ten .", "label": 0},
    {"sentence": "sharp writing, kind characters .", "label": 1},
    {"sentence": "the plot forgets itself halfway .", "label": 0},
]


def write_rows(path, rows):
    if path.name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(path)
    elif path.name.endswith(".csv"):
        Dataset.from_list(rows).to_csv(path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "csv"])
def test_every_format_from_a_folder(tmp_path, ending):
    write_rows(tmp_path / f"validation.{ending}", ROWS)
    assert load_task_dataset("sst2", "validation", data_dir=tmp_path).to_list() == ROWS


def test_file_given_by_name(tmp_path):
    path = write_rows(tmp_path / "anything.jsonl", ROWS)
    assert load_task_dataset("sst2", "train", data_files=str(path)).to_list() == ROWS
    assert len(load_task_dataset("sst2", "train", data_files=[path, path])) == 8


def test_folder_of_task_folders_and_split_names_of_the_dataset(tmp_path):
    folder = tmp_path / "mnli"
    folder.mkdir()
    rows = [{"premise": "It rains.", "hypothesis": "It is dry.", "label": 2, "idx": 7}]
    write_rows(folder / "validation_matched.jsonl", rows)
    write_rows(folder / "train-00000-of-00002.jsonl", rows)
    write_rows(folder / "train-00001-of-00002.jsonl", rows)
    expected = [{"premise": "It rains.", "hypothesis": "It is dry.", "label": 2}]
    assert load_task_dataset("mnli", "validation", data_dir=tmp_path).to_list() == expected
    assert load_task_dataset("mnli", "validation_matched", data_dir=folder).to_list() == expected
    assert load_task_dataset("mnli", "train", data_dir=folder).to_list() == expected * 2


@pytest.mark.parametrize("columns", [("article", "highlights"), ("document", "summary")])
def test_summarization_columns_and_their_aliases(tmp_path, columns):
    path = write_rows(tmp_path / "x.jsonl", [{"id": "1", columns[0]: "A long report.", columns[1]: "A report."}])
    rows = load_task_dataset("cnn_dailymail", "test", data_files=path).to_list()
    assert rows == [{"article": "A long report.", "highlights": "A report."}]
    rows = load_task_dataset("xsum", "test", data_files=path).to_list()
    assert rows == [{"document": "A long report.", "summary": "A report."}]


def test_max_samples_is_a_seeded_subset(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"sentence": f"line {i}", "label": i % 2} for i in range(50)])

    def load(**kwargs):
        return load_task_dataset("sst2", data_files=path, **kwargs)["sentence"][:]

    assert load(max_samples=5) == load(max_samples=5)
    assert load(max_samples=5) != load(max_samples=5, seed=1)
    assert len(load(max_samples=5)) == 5
    assert load(max_samples=99) == [f"line {i}" for i in range(50)]
    with pytest.raises(ValueError, match="max_samples"):
        load(max_samples=0)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load_task_dataset("sst2", data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.jsonl"):
        load_task_dataset("sst2", data_files=tmp_path / "gone.jsonl")
    write_rows(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=r"no file for the split 'validation'; it holds train\.jsonl"):
        load_task_dataset("sst2", "validation", data_dir=tmp_path)
    with pytest.raises(ValueError, match="not both"):
        load_task_dataset("sst2", data_dir=tmp_path, data_files=tmp_path / "train.jsonl")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 0}], r"bad\.jsonl: the column 'sentence' of task sst2 is missing; it has \['text'"),
        ([*ROWS, {"sentence": "b", "label": 2}], r"bad\.jsonl: row 4 has the label 2; task sst2 has labels 0 to 1"),
        ([*ROWS, {"sentence": "b", "label": -1}], r"bad\.jsonl: row 4 has the label -1"),
        ([*ROWS, {"sentence": None, "label": 1}], r"bad\.jsonl: row 4 has no value in column 'sentence'"),
        (
            [{"sentence": "b", "label": "good"}],
            r"bad\.jsonl: row 0 has the label 'good' .*; task sst2 knows negative, positive",
        ),
        ([{"sentence": "b", "label": True}], r"bad\.jsonl: column 'label' must hold integers"),
        ([{"sentence": 3, "label": 1}], r"bad\.jsonl: column 'sentence' must hold text"),
        ([{"sentence": "b", "label": -1}] * 3, r"bad\.jsonl: all labels of this split of task sst2 are hidden"),
    ],
)
def test_bad_content_is_named(tmp_path, rows, message):
    path = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        load_task_dataset("sst2", data_files=path)


def test_broken_files_are_named(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"sentence": "fine", "label": 1}\n{"sentence": "cut')
    with pytest.raises(ValueError, match=r"cannot read .*broken\.jsonl"):
        load_task_dataset("sst2", data_files=broken)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode())[:-12])
    with pytest.raises(ValueError, match=r"cannot read .*cut\.jsonl\.gz"):
        load_task_dataset("sst2", data_files=cut)
    other = tmp_path / "data.xml"
    other.write_text("<a/>")
    with pytest.raises(ValueError, match=r"format of .*data\.xml"):
        load_task_dataset("sst2", data_files=other)
    with pytest.raises(ValueError, match="must have one format"):
        load_task_dataset("sst2", data_files=[write_rows(tmp_path / "a.csv", ROWS), broken])


def test_hub_names(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return Dataset.from_list([{"premise": "p", "hypothesis": "h", "label": 0, "idx": 1}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_task_dataset("mnli", "validation").column_names == ["premise", "hypothesis", "label"]
    assert calls == [(("nyu-mll/glue", "mnli"), {"split": "validation_matched"})]
    with pytest.raises(ValueError, match="'test_matched' of task mnli are hidden"):
        load_task_dataset("mnli", "test")
    assert len(calls) == 1


def test_offline_hub_says_what_to_do():
    with pytest.raises(ConnectionError, match="data_dir or data_files"):
        load_task_dataset("rte", "train")


@pytest.mark.parametrize(
    ("task", "split", "rows"),
    [
        ("sst2", "validation", 872),
        ("sst2", "sentence_train", 6920),
        ("mnli", "validation", 9815),
        ("rte", "validation", 277),
        ("cnn_dailymail", "validation", 500),
        ("xsum", "test", 1000),
    ],
)
def test_real_files(shared_dir, task, split, rows):
    assert len(load_task_dataset(task, split, data_dir=shared_dir / "data")) == rows


def test_classes_that_a_split_counts_otherwise():
    from datasets import ClassLabel, Features, Value

    from hf_bitdistill.data.cleaning import usable_rows

    task = Task("own", "{text}", "label", ("not good", "good", "other"))
    names = ["good", "not_good"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features)
    found, left_out = usable_rows(rows, task)
    assert found["label"][:] == [1, 0] and left_out.total() == 1
    # Names that the task has in the same order, or does not have, say nothing.
    for same in (["not good", "good"], ["x", "y"]):
        rows = rows.cast_column("label", Value("int64")).cast_column("label", ClassLabel(names=same))
        assert usable_rows(rows, task)[0]["label"][:] == [0, 1]
