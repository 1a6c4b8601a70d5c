"""The picture of a result, and what its page says."""

import pytest

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
        Row("teacher", score(0.5), 4_000_000),
        Row("student before distillation", score(0.3), 5_000_000, final=False),
        Row("packed", score(0.45), 1_000_000),
    ]
    return result, drawn


def test_scores_are_drawn_against_sizes_of_what_would_be_used(made):
    result, drawn = made
    result.write()
    points, *labels = drawn["scores.png"]
    assert points == {"teacher": (4.0, 50.0, 1.0), "packed": (1.0, pytest.approx(45.0), 1.0)}
    assert labels == ["size on disk, MB", "token accuracy, %"]
    # Without a second size there is nothing to set against: bars of all.
    result.table[0].bytes = None
    result.write()
    bars, label = drawn["scores.png"]
    assert list(bars) == ["teacher", "student before distillation", "packed"] and label == "token accuracy, %"


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
