"""Damaged, empty and odd files: told in one line that names the file and the row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hf_bitdistill.cli.main import main
from hf_bitdistill.data import data_files as files_module
from hf_bitdistill.data import load_corpus, load_task_dataset, pack_corpus
from hf_bitdistill.data.data_files import find_split_files, read_files


BOM = b"\xef\xbb\xbf"


def lines(count, **extra):
    return "".join(json.dumps({"text": f"text number {i} .", **extra}) + "\n" for i in range(count)).encode()


def parquet(path, rows=4000):
    pq.write_table(pa.table({"text": [f"text number {i} ." for i in range(rows)]}), path, row_group_size=1000)
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one two"),
        ("a.jsonl", b'{"text": "one two"}\n'),
        ("a.csv", b"text\none two\n"),
        ("a.txt.gz", gzip.compress(BOM + b"one two")),
    ],
    ids=["txt", "jsonl", "csv", "txt.gz"],
)
@pytest.mark.parametrize("sample_by", ["document", "line"])
def test_a_byte_order_mark_is_no_text(tmp_path, name, content, streaming, sample_by):
    path = tmp_path / name
    path.write_bytes(content if name.endswith(".gz") else BOM + content)
    rows = list(load_corpus(path, streaming=streaming, sample_by=sample_by))
    assert [row["text"] for row in rows] == ["one two"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [b"", BOM], ids=["nothing", "mark"])
def test_an_empty_file_is_named(tmp_path, name, content, streaming):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"{name}: the file is empty"):
        load_corpus(path, streaming=streaming)
    if name.endswith(".gz"):
        path.write_bytes(b"")  # not even gzip's own header
        with pytest.raises(ValueError, match=f"{name}: the file is empty"):
            load_corpus(path, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_among_others_is_left_out(tmp_path, streaming, caplog):
    (tmp_path / "train-00000-of-00002.jsonl").write_bytes(lines(3))
    (tmp_path / "train-00001-of-00002.jsonl").touch()
    assert len(list(load_corpus(tmp_path, streaming=streaming))) == 3
    assert "left out 1 of 2 files, which are empty" in caplog.text


def damaged(tmp_path, kind):
    """A damaged file, and what must be said of it."""
    path = tmp_path / {"gz": "a.jsonl.gz", "parquet": "a.parquet", "cut parquet": "a.parquet"}.get(kind, f"a.{kind}")
    if kind == "txt":
        path.write_bytes(b"one\ntwo\nthr\xffee\n" + b"four\n" * 50_000)
        return path, "row 2 is not UTF-8"
    if kind == "csv":
        path.write_bytes(b"text\none\ntwo\nthr\xffee\n")
        return path, "row 3 is not UTF-8"
    if kind == "jsonl":
        path.write_bytes(lines(700) + b'{"text": "\xff"}\n' + lines(3))
        return path, "row 700 is not UTF-8"
    if kind == "json":
        path.write_bytes(lines(700) + b'{"text": "cut\n')
        return path, "row 700 is not JSON"
    if kind == "gz":
        path.write_bytes(gzip.compress(lines(5000))[:-2000])
        return path, "ended before"
    parquet(path)
    content = path.read_bytes()
    if kind == "cut parquet":
        path.write_bytes(content[: len(content) // 2])
        return path, "damaged or no Parquet file"
    middle = len(content) * 5 // 8
    path.write_bytes(content[:middle] + bytes(300) + content[middle + 300 :])
    return path, "damaged in rows 2000 to 2999"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "json", "gz", "parquet", "cut parquet"])
def test_damage_is_named_with_its_row(tmp_path, tiny_tokenizer, kind, streaming):
    path, problem = damaged(tmp_path, kind)
    for sample_by in ["document", "line"] if kind == "txt" else ["document"]:
        with pytest.raises(ValueError, match=problem) as caught:
            corpus = load_corpus(path, streaming=streaming, sample_by=sample_by)
            for _ in pack_corpus(corpus, tiny_tokenizer, 16):
                pass
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damage_in_a_task_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"sentence": "fine", "label": 1}).encode()] * 3
    path.write_bytes(b"\n".join([*rows, rows[0].replace(b"fine", b"\xc3(")]))
    with pytest.raises(ValueError, match=r"a\.jsonl: row 3 is not UTF-8"):
        load_task_dataset("sst2", data_files=path)


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_without_text_are_counted(tmp_path, tiny_tokenizer, streaming, caplog):
    (tmp_path / "a.jsonl").write_bytes(lines(8) + b'{"text": null}\n{"text": ""}\n')
    blocks = list(pack_corpus(load_corpus(tmp_path / "a.jsonl", streaming=streaming), tiny_tokenizer, 8))
    assert blocks
    assert "2 of 10 documents have no text in column 'text' and were left out" in caplog.text
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": ""}\n{"text": null}\n')
    with pytest.raises(ValueError, match="fewer tokens than one block of 8: 2 of 3 documents have no text"):
        list(pack_corpus(load_corpus(tmp_path / "b.jsonl", streaming=streaming), tiny_tokenizer, 8))


@pytest.mark.parametrize("parse", [False, True])
def test_names_of_special_tokens_are_text(tiny_tokenizer, parse):
    documents = Dataset.from_dict({"text": ["a <s> b </s> c"]})
    packed = pack_corpus(documents, tiny_tokenizer, 64, drop_remainder=False, parse_special_tokens=parse)
    tokens = [token for block in packed for token in block["input_ids"]]
    assert tokens.count(tiny_tokenizer.bos_token_id) == parse
    assert tokens.count(tiny_tokenizer.eos_token_id) == 1 + parse
    assert tiny_tokenizer.decode(tokens) == "a <s> b </s> c</s>"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_long_text_file_is_one_document(tmp_path, tiny_tokenizer, streaming, monkeypatch):
    path = tmp_path / "book.txt"
    text = "".join(f"chapter {i} of the long book .\r\n" for i in range(4000))
    path.write_bytes(BOM + text.encode())
    monkeypatch.setattr(files_module, "DOCUMENT_PIECE", 5000)
    corpus = load_corpus(path, streaming=streaming)
    assert max(len(row["text"]) for row in corpus) == 5000
    blocks = pack_corpus(corpus, tiny_tokenizer, 64, drop_remainder=False)
    tokens = [token for block in blocks for token in block["input_ids"]]
    expected = tiny_tokenizer(text.replace("\r\n", "\n"), add_special_tokens=False)["input_ids"]
    assert tokens == [*expected, tiny_tokenizer.eos_token_id]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        path.write_text(text)
        assert load_corpus(path)["text"][:] == [text]


def test_evaluate_reads_a_book_and_leaves_out_nulls(tmp_path, tiny_tokenizer, tiny_llama_config, capsys):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "a.jsonl").write_bytes(b'{"words": null}\n' + lines(9).replace(b'"text"', b'"words"'))
    options = ["evaluate", "--model_name_or_path", str(tmp_path / "model"), "--block_size", "32", "--corpus"]
    capsys.readouterr()  # (libraries that saving imports may have said something)
    assert main([*options, str(tmp_path / "a.jsonl"), "--text_column", "words"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > 50
    (tmp_path / "b.jsonl").write_bytes(b'{"text": null}\n')
    assert main([*options, str(tmp_path / "b.jsonl")]) == 1
    assert "there is no token to score" in capsys.readouterr().err


def test_quotes_in_a_tsv_file_that_stay_open_are_text(tmp_path):
    """As GLUE's files have them: every line is a row."""
    file = tmp_path / "train.tsv"
    lines = ["text\tlabel", '"an unclosed quote\t1', "b\t0", "c\t1", '"d\t0', "e\t1", '6" pipe\t0']
    file.write_text("\n".join(lines) + "\n")
    assert read_files([file])["text"][:] == ['"an unclosed quote', "b", "c", '"d', "e", '6" pipe']
    # Quotes that are closed, also around ends of lines, are quotes.
    file.write_text('text\tlabel\n"two\nlines"\t1\n"a ""word"""\t0\n')
    assert read_files([file])["text"][:] == ["two\nlines", 'a "word"']


def test_words_for_nothing_are_words(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("text,label,number\na,pos,1\nNA,None,NA\nnull,neg,3\n,pos,4\n")
    found = read_files([file])
    assert found["text"][:] == ["a", "NA", "null", None] and found["label"][:] == ["pos", "None", "neg", "pos"]
    # A number that is missing is none, however it is written.
    assert found["number"][:] == [1, None, 3, 4] and found.column_names == ["text", "label", "number"]


def test_a_missing_part_of_a_split_is_named(tmp_path):
    for name in ("train-00000-of-00002.csv", "train-extra-00000-of-00001.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\na,x\nb,y\n")
    with pytest.raises(FileNotFoundError, match=r"holds 1 of the 2 files of the split 'train': .*00000-of-00002"):
        find_split_files(tmp_path, ["train"])
    (tmp_path / "train-00001-of-00002.csv").write_text("text,label\na,x\nb,y\n")
    assert [file.name[6:11] for file in find_split_files(tmp_path, ["train"])] == ["00000", "00001"]
