"""A run that is killed goes on where it stopped and ends the same; a changed setting runs again only what depends on it."""

import io
import json

import pytest
from safetensors.torch import load_file

from hf_bitdistill.recipe import plan_recipe, run_recipe
from hf_bitdistill.recipe.progress import Progress
from tiny_recipe import NOT_FINE_TUNED


pytestmark = pytest.mark.usefixtures("no_figures", "quick_probe")

# No need of a good teacher here.
SHORT = {"teacher_examples": 320, "check_teacher": False, "keep_only_better": False}


class Killed(BaseException):
    pass


class Killing(Progress):
    """Ends the run once so many steps of a stage are done."""

    def __init__(self, title, step):
        super().__init__(io.StringIO())
        self.at = title, step

    def show(self, done, total, loss=None):
        title, step = self.at
        if self._title.startswith(title) and done == step:
            raise Killed


def weights(result):
    return load_file(result.paths["packed"] / "model.safetensors")


def test_killed_at_three_stages(settings, tmp_path):
    options = {**SHORT, "window_steps": 3, "window_stride": 1}
    reference = run_recipe(settings, output_dir=str(tmp_path / "reference"), **options)
    for title, step in (("teacher", 17), ("start", 2), ("distillation", 3)):
        # At last every step keeps a checkpoint; the teacher has those of the best model anyway.
        often = {} if title == "teacher" else {"checkpoint_minutes": 1e-6}
        with pytest.raises(Killed):
            run_recipe(settings, progress=Killing(title, step), **options, **often)
        assert not (tmp_path / "out" / "result.json").exists()
    lines = io.StringIO()
    result = run_recipe(settings, progress=Progress(lines), **options)
    assert "goes on from step 3" in lines.getvalue() and "teacher: was done before" in lines.getvalue()
    assert result.scores == reference.scores
    expected, found = weights(reference), weights(result)
    assert expected.keys() == found.keys() and all(value.equal(found[name]) for name, value in expected.items())


def test_sweeps_leave_no_models_and_are_found_again(settings, tmp_path):
    own = {"effort": "standard", "teacher_learning_rates": None, "sweep_extensions": 1, "eval_rows": 40, **SHORT}
    options = {**own, "sweep_share": 0.5}
    with pytest.raises(Killed):
        run_recipe(settings, progress=Killing("distillation, another", 1), **options)
    lines = io.StringIO()
    result = run_recipe(settings, progress=Progress(lines), **options)
    said = lines.getvalue()
    short = [
        f"{what}, {which} in short"
        for what in ("teacher", "distillation")
        for which in ("learning rate 0.0002", "another rate")
    ]
    assert all(title in result.seconds for title in short)
    assert all(f"{title}: was done before" in said for title in short[:3]) and f"{short[3]}: took" in said
    assert sum("runs at the learning rate" in choice for choice in result.choices) == 2
    assert set(result.curves) == {"teacher", "distillation"}
    folders = list((tmp_path / "out" / "stages").glob("*_in_short-*"))
    assert len(folders) == 6 and not any((folder / "model").exists() for folder in folders)


def test_a_rate_at_which_a_training_does_not_stay_finite(settings, tmp_path):
    options = {**SHORT, "teacher_learning_rates": [1e30, 1e-2], "sweep_share": 0.5}
    lines = io.StringIO()
    run_recipe(settings, progress=Progress(lines), **options)
    assert "teacher runs at the learning rate 0.01: " in lines.getvalue() and "1e+30: not finite" in lines.getvalue()
    # It is not tried again.
    lines = io.StringIO()
    run_recipe(settings, progress=Progress(lines), **options)
    assert "teacher, learning rate 1e+30 in short: was done before" in lines.getvalue()


def test_a_changed_setting_runs_again_what_depends_on_it(settings, tmp_path):
    run_recipe(settings, **SHORT)
    stages = tmp_path / "out" / "stages"
    made = {path.name: (path / "result.json").stat().st_mtime_ns for path in stages.iterdir()}
    first = json.loads((tmp_path / "out" / "result.json").read_text())

    lines = io.StringIO()
    run_recipe(settings, progress=Progress(lines), hidden_loss_weight=1.0, **SHORT)
    assert "hidden_loss_weight: default -> 1.0" in lines.getvalue()
    new = {path.name.rsplit("-", 1)[0] for path in stages.iterdir() if path.name not in made}
    assert new <= {"distill", "measure", "pack", "evaluate"} and "distill" in new
    assert all((stages / name / "result.json").stat().st_mtime_ns == when for name, when in made.items())

    # Back again: nothing runs, and the result is that of the first run.
    count = len(list(stages.iterdir()))
    again = run_recipe(settings, **SHORT)
    assert len(list(stages.iterdir())) == count
    assert [row.score for row in again.table] == [row["score"] for row in first["table"]]

    # Other data: everything would run again, from the probe on.
    with open(settings.dataset, "a") as writer:
        writer.write("warm 3,positive,200\n")
    plan_recipe(settings, progress=Progress(lines))
    kinds = [path.name.rsplit("-", 1)[0] for path in stages.iterdir()]
    assert kinds.count("probe") == 2 and kinds.count("teacher") == 1


def test_a_given_model_is_measured_again_when_it_is_asked_otherwise(settings, tmp_path):
    """Its key says nothing of prompt, words and metric; a fine-tuned one's does."""
    words = {"label_words": ["no", "perhaps", "yes"]}
    given = {"teacher": settings.model, **SHORT, **NOT_FINE_TUNED}
    first = run_recipe(settings, **given)
    other = run_recipe(settings, **given, **words)
    alone = run_recipe(settings, output_dir=str(tmp_path / "alone"), **given, **words)
    assert [row.score for row in other.table] == [row.score for row in alone.table]
    assert [row.name for row in first.table] == [row.name for row in other.table]
