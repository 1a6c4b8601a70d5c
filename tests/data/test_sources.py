"""What is loaded of local files: rows, the part to measure on, what could not be read."""

import pytest

from hf_bitdistill.data.cleaning import NOT_UTF8
from hf_bitdistill.data.sources import load_examples, load_rows_to_measure


LOADERS = [load_examples, load_rows_to_measure]


@pytest.fixture
def stories(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("\n\n".join(f"The robot number {i}\nwaters a plant ." for i in range(30)) + "\n")
    return file


def test_a_row_of_a_text_file_is_a_paragraph(stories):
    found, measured = (load(stories) for load in LOADERS)
    assert (len(found.train), len(found.validation)) == (27, 3)
    assert all(text.endswith("\nwaters a plant .") for text in (*found.train["text"], *found.validation["text"]))
    # Whoever measures alone has the same rows.
    assert measured.rows["text"][:] == found.validation["text"][:] and len(measured.whole) == 30


@pytest.mark.parametrize("load", LOADERS)
def test_a_text_without_paragraphs_says_what_they_are(tmp_path, load):
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(
        ValueError, match=r"lines.txt has 1 rows: too few .* a row is a paragraph, and empty lines part them"
    ):
        load(tmp_path / "lines.txt")


def test_rows_that_are_not_utf8_are_counted_by_both(tmp_path):
    file = tmp_path / "teas.csv"
    lines = [f"caf\u00e9 number {i},{i % 2}".encode() for i in range(30)]
    lines[12] = lines[12].replace("\u00e9".encode(), b"\xe9")  # Latin-1
    file.write_bytes(b"\n".join([b"text,label", *lines]) + b"\n")
    found, measured = (load(file, skip_undecodable=True) for load in LOADERS)
    assert found.left_out[0] == measured.left_out == {NOT_UTF8: 1}
    assert len(measured.whole) == 29 and measured.rows[:] == found.validation[:]
    file.write_bytes(b"text,label\n" + lines[12] + b"\n" + lines[0] + b"\n")
    with pytest.raises(ValueError, match="has 1 rows besides 1 not UTF-8: too few"):
        load_examples(file, skip_undecodable=True)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"config_name": "plain"}, "the configuration 'plain' could"),
        ({"revision": "v2"}, "the revision 'v2' could"),
        ({"config_name": "plain", "revision": "v2"}, "the configuration 'plain' and the revision 'v2' could"),
    ],
)
def test_what_only_a_dataset_on_the_hub_has_is_refused(stories, load, options, named):
    for path in (stories, stories.parent):
        with pytest.raises(ValueError, match=f"{path} is a local path, and {named} only be of a dataset on the Hub"):
            load(path, **options)
