"""Text extraction and the hash split."""

from __future__ import annotations

import pytest

from hf_bitdistill.quickstart.corpus import (
    docstrings,
    extract,
    package_folder,
    paragraph_key,
    source_files,
    split_of,
    split_paragraphs,
    split_texts,
)


SOURCE = '''"""Module text."""
import os

class A:
    """Class text."""

    async def method(self, a: int, *rest, key=None, **more):
        """Method text."""
        x = """not a docstring"""

if True:
    def f():
        """Function
        text."""

add_newdoc("name", """
    {long}

    second paragraph
    """)
'''


@pytest.fixture
def source_file(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(SOURCE.replace("{long}", "compiled function " * 20))
    return file


def test_docstrings_of_every_kind(source_file):
    found = docstrings(source_file)
    assert found[:4] == [
        ("Module text.", ""),
        ("Class text.", "class A"),
        ("Method text.", "def method(a, *rest, key, **more)"),
        ("Function\ntext.", "def f()"),
    ]
    assert len(found) == 5
    text, signature = found[-1]
    assert text.startswith("compiled function") and text.endswith("\n\nsecond paragraph") and signature == ""


@pytest.mark.parametrize("content", [b'def f(:\n    """text"""', b'"""\xff\xfe"""', b'x = "\x00"  # """', b""])
def test_a_file_that_cannot_be_parsed_has_no_text(tmp_path, content):
    file = tmp_path / "bad.py"
    file.write_bytes(content)
    assert docstrings(file) == []


def test_source_files_are_sampled_by_name_alone(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.py").write_text("x" * 100)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("x")
    files = source_files(tmp_path)
    assert sorted(file.name for file in files) == ["a.py", "b.py", "c.py", "d.py"]
    assert source_files(tmp_path, 250) == files[:2]


def test_packages_are_found_without_importing_them():
    assert (package_folder("python") / "ast.py").is_file()
    assert (package_folder("numpy") / "__init__.py").is_file()
    assert package_folder("no_such_package_here") is None
    assert extract(["no_such_package_here"]) == []


def test_workers_change_nothing(documents):
    assert extract(["python", "numpy"], max_bytes=400_000, workers=2) == documents
    assert len(documents) > 100


def test_paragraphs():
    assert split_paragraphs("a\nb\n\n  \n    c\n\n") == ("a\nb", "    c")


def test_split_depends_on_the_first_words_only():
    text = "Return a copy of the array collapsed into one dimension."
    assert paragraph_key(text) == "return a copy of the array collapsed into"
    assert split_of(text) == split_of("return a copy: of the numpy array, collapsed INTO two dimensions")
    # Fixed for all time: the shipped base model was trained without the held-out text.
    words = ("Return", "Set", "Compute", "Delete", "Print")
    splits = [split_of(f"{word} the value of this thing") for word in words]
    assert splits == ["train", "test", "train", "train", "train"]


def test_split_shares_and_no_overlap(documents):
    paragraphs = {paragraph for document in documents for paragraph in document.paragraphs}
    splits = [split_of(paragraph) for paragraph in paragraphs]
    assert 0.08 < splits.count("test") / len(splits) < 0.16
    assert 0.02 < splits.count("validation") / len(splits) < 0.07

    keys = {}
    for split in ("train", "validation", "test"):
        texts = split_texts(documents, split)
        keys[split] = {paragraph_key(paragraph) for text in texts for paragraph in split_paragraphs(text)}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["test"] & keys["validation"]
