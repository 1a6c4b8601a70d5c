"""The picture of a result, and what its page says."""

import itertools

import pytest

from hf_bitdistill import pack
from hf_bitdistill.pages.figures import Point, name_places, plot_points
from hf_bitdistill.recipe import result as results
from hf_bitdistill.recipe.result import RecipeResult, Row, Written
from students import make_student


def score(value):
    return {"metric": "token_accuracy", "value": value, "stderr": 0.01, "n": 40, "chance": 0.1, "more": {}}


def gap(loss, accuracy):
    return {
        "loss": {"value": loss, "stderr": 0.02}, "accuracy": {"value": accuracy, "stderr": 0.02}, "agreement": 0.9, "n": 8,
    }  # fmt: skip


@pytest.fixture
def made(tmp_path, monkeypatch):
    drawn = {}

    def draw(title, file, what, *labels):
        drawn[file.name] = (what, *labels)
        file.write_bytes(b"a figure")
        return file

    for name in ("plot_bars", "plot_panels", "plot_points"):
        monkeypatch.setattr(results, name, draw)
    result = RecipeResult(
        tmp_path, {}, {"window_steps": 0}, "data", {}, gap=gap(0.1, -0.1),
        tries=[{"what": "distillation", "steps": 4, **gap(0.1, -0.1)}],
        curves={"teacher": [{"step": 1, "loss": 2.0}]}, outlook={"start": None, "distillation": None},
    )  # fmt: skip
    result.table = [
        Row("base model", score(0.1), 4_000_000),
        Row("teacher", score(0.5), 4_000_000, 100.0),
        Row("student before distillation", score(0.3), 5_000_000, final=False),
        Row("packed", score(0.45), 1_000_000),
    ]
    return result, drawn


def test_which_side_of_its_teacher_a_student_is_on(made):
    result, _ = made
    result.gap = gap(0.25, -0.05)
    (text, *_) = result.sentences()
    assert "0.250 ± 0.020 nats behind in loss and 5.0 ± 2.0 points behind in accuracy; 90.0 %" in text
    result.gap = gap(-0.25, 0.05)
    text, advice, *_ = result.sentences()
    assert "0.250 ± 0.020 nats ahead in loss and 5.0 ± 2.0 points ahead in accuracy" in text
    assert "could learn more from a better one" in advice
    # Within noise, and of a teacher that was given, there is no such advice.
    result.gap = gap(-0.25, 0.03)
    assert not any("better one" in line for line in result.sentences())
    result.gap, result.curves = gap(-0.25, 0.05), {}
    assert not any("better one" in line for line in result.sentences())


def test_what_more_time_would_buy(made):
    result, _ = made
    result.numbers = {"window_steps": 4}
    result.gap = gap(0.25, -0.05)
    result.tries = [{"what": "start", "steps": 4, **gap(0.25, 0.0)}, {"what": "distillation", "steps": 0}]
    assert result.sentences()[1:] == [
        "Twice the warm start could close 0.250 ± 0.020 nats at most, which were left after it. How much it would is not known: there was one "
        "length of it (--extra_doublings 1 tries another).",
        "There was no distillation.",
    ]
    result.tries[0] = {"what": "start", "steps": 4, **gap(0.015, 0.0)}
    assert result.sentences()[1] == (
        "The warm start left no gap that can be told from none (0.015 ± 0.020 nats): twice of it could close none."
    )
    result.tries += [{"what": "distillation", "steps": 60}, {"what": "distillation", "steps": 400}]
    found = {"left": 0.2, "closes": 0.05, "stderr": 0.01, "effort": 800}
    result.outlook = {"start": None, "distillation": found}
    assert (
        "Twice the distillation (800 steps) would probably close 0.050 ± 0.010 of the 0.200 nats"
        in result.sentences()[2]
    )
    result.outlook = {"start": None, "distillation": {**found, "left": -0.2}}
    assert result.sentences()[2] == "The distillation left no gap that twice of it could close."


def test_what_is_scored_without_looking(made):
    result, _ = made
    assert [row[:2] for row in result.cells()[1]][:2] == [
        ["most frequent answer", "10.0 %"],
        ["base model", "10.0 ± 1.0 %"],
    ]
    result.table[0].score["more"]["random_level"] = 0.25
    assert result.cells()[1][1] == ["random answer", "25.0 %", "", ""]


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
    assert "Twice the warm start" not in page and "Twice the distillation" in page
    drawn.clear()
    result.written = []
    result.write(draw=False)
    page = result.paths["report"].read_text(encoding="utf-8")
    assert not drawn and page.count("data:image/png") == 2 and "at work" not in page


def test_the_page_shows_the_packed_layers(made, tmp_path, monkeypatch):
    result, drawn = made
    pack(make_student("llama")).save_pretrained(tmp_path / "packed")
    result.paths["packed"] = tmp_path / "packed"

    def draw(layers, file):
        drawn[file.name] = layers
        file.write_bytes(b"a figure")
        return file

    monkeypatch.setattr(results, "draw_layers", draw)
    result.write()
    assert len(drawn["packed_layers.png"]) == 14
    assert "<h2>The packed layers</h2>" in result.paths["report"].read_text(encoding="utf-8")
    # It goes with the figures that are shown again.
    drawn.clear()
    result.write(draw=False)
    assert not drawn and "<h2>The packed layers</h2>" in result.paths["report"].read_text(encoding="utf-8")


def test_names_do_not_cover_each_other(tmp_path):
    # Two students of one size, a point of score apart: their names are apart by what a name takes.
    assert name_places([41.0, 42.0, 50.0], 3.0) == [40.0, 43.0, 50.0]
    assert name_places([1.0, 5.0], 3.0) == [1.0, 5.0]
    three = name_places([40.0, 40.1, 40.2], 2.0)
    assert three == sorted(three) and min(b - a for a, b in itertools.pairwise(three)) > 1.5
    points = [Point("teacher", 4.0, 50.0, 1.0), Point("packed", 1.0, 45.0, 1.0, "1.0 MB, 2,000 tokens/s")]
    file = plot_points("A title", tmp_path / "a.png", points, "size", "score")
    assert file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size > 10_000
