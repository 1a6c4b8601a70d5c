"""The plan, the budget, the settings and the table of efforts."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_bitdistill.cli.main import main
from hf_bitdistill.recipe import RecipeError, RecipeSettings
from hf_bitdistill.recipe.efforts import EFFORTS, Effort, measurements, paper, scaled
from hf_bitdistill.recipe.plan import fit, make_plan, probe, window_schedule
from hf_bitdistill.recipe.progress import Progress
from hf_bitdistill.recipe.run import _Run
from hf_bitdistill.recipe.settings import EffortArguments, parse_budget
from tiny_recipe import FAST, flags


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_plan_prints_times_and_stops(settings, tmp_path, capsys):
    own = {"text_columns": ["opinion"], "label_column": "verdict", "output_dir": tmp_path / "out"}
    options = {**FAST, "extra_doublings": 1, "distill_rounds": 2, "effort": "standard", "distill_examples": 640}
    options["teacher_learning_rates"] = [1e-2, 1e-3]  # (given: no others are tried)
    line = flags(model=settings.model, dataset=settings.dataset, plan=True, **own, **options)
    assert main(["run", *line]) == 0
    out = capsys.readouterr().out
    rows = [line.split("  ")[0] for line in out.splitlines()]
    titles = [
        "teacher, learning rate 0.01 in short",
        "teacher, learning rate 0.001 in short",
        "teacher",
        "start, 4 steps a window",
        "start, 8 steps a window (if a gap closes)",
        "distillation, learning rate 0.0002 in short",
        "distillation, learning rate 5e-05 in short",
        "distillation, another rate in short (if the best is at the edge)",
        "distillation, another rate in short (2) (if the best is at the edge)",
        "distillation",
        "distillation, round 2 (if a gap closes)",
    ]
    assert [title for title in rows if title.startswith(("teacher", "start", "distillation"))] == titles
    assert "in all" in rows and " s" in out and "tokens" in out
    assert not list((tmp_path / "out" / "stages").glob("teacher-*"))


def test_a_model_that_does_not_show_its_attention(settings, tmp_path, tiny_tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tiny_tokenizer)
    )
    falcon = tmp_path / "falcon"
    AutoModelForCausalLM.from_config(config).save_pretrained(falcon)
    tiny_tokenizer.save_pretrained(falcon)
    work = _Run(dataclasses.replace(settings, model=str(falcon)), Progress(io.StringIO())).work
    work.start(falcon, 1, tmp_path / "start", max_batches=1)
    result = work.distill(tmp_path / "start" / "model", falcon, 1e-4, 1, tmp_path / "distill")
    assert result["left_out"] == ["attention relations: this architecture does not show its Q, K, V"]
    # A probe tells before any training what cannot be done.
    assert probe(work, falcon, False, False)["distill_step"] > 0


MEASURED = {
    "load": 0.5, "windows": 2, "window_step": 0.1, "window_batch_size": 4, "window_tokens": 100, "window_batch": 0.05, "start": 1.0,
    "distill_step": 0.2, "teacher_step": 0.1, "held_out_row": 0.01, "evaluation_row": 0.01,
}  # fmt: skip


def test_budget(settings):
    settings = dataclasses.replace(settings, teacher_examples=None, window_steps=None, distill_examples=None)
    work = _Run(settings, Progress(io.StringIO())).work
    plan = make_plan(work, settings, MEASURED, True)
    seconds = {stage.title: stage.seconds for stage in plan.stages}
    # 100 steps of 16 examples; 1 s and two loads besides two windows of 64 steps; ...
    assert seconds["distillation"] == pytest.approx(0.2 * 30 + 18 * 0.01 + 1.0)
    assert seconds["start, 64 steps a window"] == pytest.approx(1 + 2 * 64 * 0.1 + 162 / 4 * 0.05 + 18 * 0.01 + 1)
    fitted = {budget: fit(work, settings, MEASURED, True, budget) for budget in (22, 40, 200)}
    factors = [plan.factor for _, plan in fitted.values()]
    assert factors == sorted(set(factors))
    assert all(plan.surely <= 0.9 * budget for budget, (_, plan) in fitted.items())
    steps = [work.numbers.window_steps for work, _ in fitted.values()]
    assert steps == sorted(set(steps))
    # What is given stays.
    given = dataclasses.replace(settings, window_steps=7)
    assert fit(work, given, MEASURED, True, 25)[0].numbers.window_steps == 7
    with pytest.raises(RecipeError, match=r"budget of 1 s is too short: the least .* takes"):
        fit(work, settings, MEASURED, True, 1)


@pytest.mark.parametrize("text,seconds", [("45m", 2700), ("1h30m", 5400), ("90s", 90), ("0.5h", 1800)])
def test_budget_is_read(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "45", "m", "0m", "1 h", "-5m", "5mm"])
def test_budget_is_refused(text):
    with pytest.raises(RecipeError, match="budget must be a time"):
        parse_budget(text)


def test_every_number_says_where_it_is_from():
    for name, files in measurements(Effort()).items():
        assert all((RESULTS / file).is_file() for file in files), name
    assert sum(bool(files) for files in measurements(Effort()).values()) > 20


def test_every_number_is_an_option():
    options = {each.name for each in dataclasses.fields(EffortArguments)}
    assert options == {each.name for each in dataclasses.fields(Effort)}
    assert all(each.metadata["help"] for each in dataclasses.fields(RecipeSettings))


def test_settings(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndataset: d\noutput_dir: o\ndistill_learning_rates: [1e-4, 2e-5]\nlora: true\n")
    settings = RecipeSettings.from_yaml(file, seed=3)
    assert settings == RecipeSettings(
        model="m", dataset="d", output_dir="o", distill_learning_rates=[1e-4, 2e-5], lora=True, seed=3
    )
    numbers = settings.numbers(classes=True)
    assert numbers.distill_learning_rates == (1e-4, 2e-5) and numbers.window_steps == 400
    for bad, what in (
        ({"effort": "great"}, "effort"),
        ({"batch_size": 0}, "batch_size"),
        ({"distill_learning_rates": []}, "empty"),
        ({"teacher_learning_rates": []}, "empty"),
        ({"distill_learning_rates": [1e-4, 0.0]}, "distill_learning_rates"),
        ({"preset": "paper"}, "give corpus"),
        ({"max_left_out": 1.5}, "max_left_out"),
        ({"max_length": 2}, "max_length"),
        ({"teacher": "t", "lora": True}, "lora: a teacher is given, and nothing is fine-tuned here; leave it out"),
        (
            {"teacher": "t", "teacher_epochs": 2.0, "lora": True},
            "lora, teacher_epochs: a teacher is given.* leave them",
        ),
        ({"teacher": "t", "teacher_learning_rates": [1e-4], "compare": True}, "teacher_learning_rates: a teacher"),
        ({"corpus_tokens": 10, "block_size": 32}, r"corpus_tokens, block_size: of which plain text\? Give it"),
        ({"dead_zone_leak": 0.0}, "dead_zone_leak: of which plain text"),
    ):
        with pytest.raises(RecipeError, match=what):
            RecipeSettings(**bad)
    # What is compared with trains for as long as a teacher would.
    assert RecipeSettings(teacher="t", compare=True, teacher_examples=32).numbers(True).teacher_examples == 32
    with pytest.raises(RecipeError, match="--output_dir is required"):
        RecipeSettings(model="m", dataset="d").require()


def test_schedule_of_the_warm_start():
    assert window_schedule(EFFORTS["standard"]) == [400]
    assert window_schedule(EFFORTS["thorough"]) == [800, 1600]
    assert window_schedule(EFFORTS["quick"]) == [64]
    assert window_schedule(paper(EFFORTS["quick"], True)) == [0]
    # A budget goes on while it lasts.
    assert window_schedule(scaled(EFFORTS["standard"], 0.25)) == [100, 200, 400, 800, 1600]
    assert (
        scaled(EFFORTS["standard"], 2.0).distill_rounds
        > 1
        == scaled(paper(EFFORTS["quick"], True), 2.0).distill_rounds
    )
