"""The files that the quickstart makes of docstrings."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hf_bitdistill.quickstart import QuickstartError, data
from hf_bitdistill.quickstart.corpus import split_of, split_paragraphs
from hf_bitdistill.quickstart.data import DataFiles, prepare


def contents(files):
    return [file.read_bytes() for file in (files.train, files.test, files.corpus)]


def test_files_are_made_once_and_always_the_same(tmp_path, tiny):
    files = DataFiles(tmp_path / "data")
    assert prepare(files, tiny)
    made, times = contents(files), [file.stat().st_mtime_ns for file in (files.train, files.test, files.corpus)]
    assert not prepare(files, tiny)
    # Who changes one gets it back as it was, and the others are left alone.
    files.test.write_text("{}\n")
    assert prepare(files, tiny) and contents(files) == made
    assert [file.stat().st_mtime_ns for file in (files.train, files.corpus)] == [times[0], times[2]]
    files.corpus.unlink()
    assert prepare(files, replace(tiny, threads=2)) and contents(files) == made
    assert prepare(files, replace(tiny, seed=1)) and contents(files)[0] != made[0]


def test_rows_are_what_the_recipe_knows_and_nothing_held_out_is_read(tmp_path, tiny):
    files = DataFiles(tmp_path / "data")
    prepare(files, tiny)
    train, test, texts = ([json.loads(line) for line in part.decode().splitlines()] for part in contents(files))
    assert (len(train), len(test)) == (50, 20)
    for split, rows in (("train", train), ("test", test)):
        for row in rows:
            assert set(row) == {"prompt", "completion"}
            assert row["prompt"].endswith("\nSummary:") and row["completion"].startswith(" ")
            assert split_of(row["completion"]) == split
    paragraphs = [paragraph for row in texts for paragraph in split_paragraphs(row["text"])]
    assert len(paragraphs) > 100 and {split_of(paragraph) for paragraph in paragraphs} == {"train"}


def test_half_of_a_surrogate_pair_is_no_text(tmp_path):
    data._write(tmp_path / "rows.jsonl", [{"text": "a\ud800b"}])
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"text": "a?b"}\n'


def test_too_little_text(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(data, "extract", lambda *_: [])
    with pytest.raises(QuickstartError, match="Not enough text"):
        prepare(DataFiles(tmp_path / "data"), tiny)


def test_output_that_cannot_be_written(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuickstartError, match="Cannot write"):
        prepare(DataFiles(tmp_path / "file" / "data"), tiny)
