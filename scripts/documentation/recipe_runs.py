"""Records of `bitdistill run`, the recipe as a whole: `recipe/smollm2_TASK_EFFORT.json`, shown where the file is there."""

from __future__ import annotations

from .charts import Bars, Point, Quality
from .shown import RESULTS, Shown, exists, load, machine


QUICKSTART = "recipe/quickstart.json"
STUDENT, TEACHER, WITHOUT = "ternary student, packed", "teacher", "BitNet-SFT (no recipe)"
BEFORE = "student before distillation"
_EFFORTS = ("quick", "standard", "thorough")


def recipe_record(effort: str, task: str = "sst2") -> str:
    return f"recipe/smollm2_{task}_{effort}.json"


def recipe_row(file: str, name: str) -> dict:
    return next(row for row in load(file)["table"] if row["name"] == name)


def score_text(row: dict) -> str:
    return f"{100 * row['score']['value']:.1f} ± {100 * row['score']['stderr']:.1f}"


def time_text(values: dict) -> str:
    """How long a run took; of one that was interrupted, how long it was planned to."""
    if "note" in values:
        return f"planned {values['plan']['seconds'] / 60:.0f} minutes"
    return f"{sum(values['seconds'].values()) / 60:.0f} minutes"


def quality() -> Quality:
    """Quality against size and speed on SST-2: the teacher, and the student of each effort that was recorded."""
    efforts = [effort for effort in _EFFORTS if exists(recipe_record(effort))]
    # (Each effort has a teacher of its own; the picture shows that of the last one.)
    points = [("teacher, float32", recipe_row(recipe_record(efforts[-1]), TEACHER))]
    points += [(f"ternary, {effort}", recipe_row(recipe_record(effort), STUDENT)) for effort in efforts]
    return Quality(
        "accuracy on SST-2, %",
        [
            Point(
                name,
                row["bytes"] / 1e6,
                row["tokens_per_second"],
                100 * row["score"]["value"],
                100 * row["score"]["stderr"],
            )
            for name, row in points
        ],
    )


def unseen() -> Shown:
    """Runs on tasks that no number of the recipe comes from: `recipe/unseen_*.json`."""
    files = [f"recipe/{file.name}" for file in sorted((RESULTS / "recipe").glob("unseen_*.json"))]
    names, rows, measured = [], [], []
    for file in files:
        values = load(file)
        names.append(f"{values['settings']['dataset']}, {values['settings']['model']}")
        asked = values["settings"].get("budget") or f"effort {values['settings'].get('effort', 'standard')}"
        scores = [f"{score_text(recipe_row(file, name))} %" for name in (TEACHER, BEFORE, STUDENT)]
        chance = values["table"][0]["score"]["chance"]
        rows.append([names[-1], asked, f"{100 * chance:.1f} %", *scores])
        measured.append(f"{names[-1]}: {machine(values['machine'])}, {time_text(values)}")
    series = {"teacher": TEACHER, "before distillation": BEFORE, "ternary student": STUDENT}
    found = {title: [recipe_row(file, name)["score"] for file in files] for title, name in series.items()}
    return Shown(
        [
            "task, model",
            "asked for",
            "most frequent answer",
            "teacher",
            "student before distillation",
            "ternary student",
        ],
        rows,
        files,
        "; ".join(measured),
        Bars(
            "accuracy, %",
            names,
            {title: [100 * each["value"] for each in scores] for title, scores in found.items()},
            {title: [100 * each["stderr"] for each in scores] for title, scores in found.items()},
        ),
        "Accuracy of teacher and ternary student on tasks that no number of the recipe comes from",
    )


def recipe() -> Shown:
    records = (recipe_record(effort, task) for task in ("sst2", "mnli") for effort in _EFFORTS)
    files = [QUICKSTART, *filter(exists, records)]
    rows, measured = [], []
    for file in files:
        values = load(file)
        name = f"{values['settings']['model']}, {values['settings']['dataset']}"
        effort = values["settings"].get("effort", "standard")
        how = "`make demo`" if file == QUICKSTART else f"`--effort {effort}`"
        name += f", {how}"
        for which in (TEACHER, STUDENT, WITHOUT):
            row = next((row for row in values["table"] if row["name"] == which), None)
            if row:
                speed = row["tokens_per_second"]
                rows.append(
                    [
                        name,
                        which,
                        f"{score_text(row)} %",
                        f"{row['bytes'] / 1e6:.1f} MB",
                        f"{speed:,.0f}" if speed else None,
                    ]
                )
        measured.append(f"{values['settings']['dataset']}, {how}: {machine(values['machine'])}, {time_text(values)}")
    return Shown(
        ["run", "model", "accuracy (docstrings: of tokens)", "on disk", "tokens a second"],
        rows,
        files,
        "; ".join(measured),
        quality(),
        "Accuracy on SST-2 against size on disk and against tokens a second, teacher and ternary student",
    )
