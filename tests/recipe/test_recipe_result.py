"""The picture of a result, and what its page says."""

import itertools

import pytest

from hf_bitdistill.pages.figures import Point, name_places, plot_points
from hf_bitdistill.recipe import result as results
from hf_bitdistill.recipe.result import RecipeResult, Row, Written


def score(value):
    return {"metric": "token_accuracy", "value": value, "stderr": 0.01, "n": 40, "chance": 0.1, "more": {}}


@pytest.fixture
def made(tmp_path, monkeypatch):
    drawn = {}

    def draw(title, file, what, *labels):
        drawn[file.name] = (what, *labels)
        file.write_bytes(b"a figure")
        return file

    for name in ("plot_bars", "plot_panels", "plot_points"):
        monkeypatch.setattr(results, name, draw)
    gap = {name: {"value": 0.1, "stderr": 0.01} for name in ("loss", "accuracy")}
    result = RecipeResult(
        tmp_path, {}, {"window_steps": 0}, "data", {}, gap={**gap, "agreement": 0.9, "n": 8},
        curves={"teacher": [{"step": 1, "loss": 2.0}]}, outlook={"start": None, "distillation": None},
    )  # fmt: skip
    result.table = [
        Row("base model", score(0.1), 4_000_000),
        Row("teacher", score(0.5), 4_000_000, 100.0),
        Row("student before distillation", score(0.3), 5_000_000, final=False),
        Row("packed", score(0.45), 1_000_000),
    ]
    return result, drawn


def test_scores_are_drawn_against_sizes_of_what_would_be_used(made):
    result, drawn = made
    result.write()
    points, *labels = drawn["quality.png"]
    assert result.picture.read_bytes() == b"a figure"
    # The base model has not learned the task, and the trainable student is none that would be used.
    assert points == [
        Point("teacher", 4.0, 50.0, 1.0, "4.0 MB, 100 tokens/s"),
        Point("packed", 1.0, pytest.approx(45.0), 1.0, "1.0 MB"),
    ]
    assert labels == ["size on disk, MB", "token accuracy, %"]
    # Without a second size there is nothing to set against: bars of all.
    result.table[1].bytes = None
    result.write()
    bars, label = drawn["quality.png"]
    assert (
        list(bars) == ["base model", "teacher", "student before distillation", "packed"]
        and label == "token accuracy, %"
    )


def test_the_page_says_what_curves_do_not(made):
    result, drawn = made
    result.written = [Written("def f(x)", "A thing.", "A <teacher>.", "A student.")]
    result.write()
    page = result.paths["report"].read_text(encoding="utf-8")
    assert "These curves do not rank the models" in page and "A &lt;teacher&gt;." in page
    # There was no warm start whose doubling could buy anything.
    assert "twice the warm start" not in page and "twice the distillation" in page
    drawn.clear()
    result.written = []
    result.write(draw=False)
    page = result.paths["report"].read_text(encoding="utf-8")
    assert not drawn and page.count("data:image/png") == 2 and "at work" not in page


def test_names_do_not_cover_each_other(tmp_path):
    # Two students of one size, a point of score apart: their names are apart by what a name takes.
    assert name_places([41.0, 42.0, 50.0], 3.0) == [40.0, 43.0, 50.0]
    assert name_places([1.0, 5.0], 3.0) == [1.0, 5.0]
    three = name_places([40.0, 40.1, 40.2], 2.0)
    assert three == sorted(three) and min(b - a for a, b in itertools.pairwise(three)) > 1.5
    points = [Point("teacher", 4.0, 50.0, 1.0), Point("packed", 1.0, 45.0, 1.0, "1.0 MB, 2,000 tokens/s")]
    file = plot_points("A title", tmp_path / "a.png", points, "size", "score")
    assert file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size > 10_000
