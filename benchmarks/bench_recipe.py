"""`bitdistill run` on a real model, for the record: scores, and the planned time of each stage beside the one it took.

    python benchmarks/bench_recipe.py --name smollm2_sst2 --model_name SmolLM2-135M-Instruct --dataset_name SST-2 \\
        --model SMOLLM2 --dataset DATA/sst2 --effort standard --output_dir outputs/recipe/sst2

All options but the names are those of `bitdistill run`, and so is the run: one that is finished in `--output_dir` is only recorded, and one
that was interrupted goes on. Writes NAME.json and NAME.md into `--results`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_bitdistill.cli.arguments import parse
from hf_bitdistill.recipe import RecipeResult, RecipeSettings, run_recipe
from hf_bitdistill.recipe.progress import duration
from hf_bitdistill.report.tables import markdown_table


# What the files of one machine are called says nothing to a reader.
_PLACES = ("model", "dataset", "teacher", "corpus", "output_dir", "task")


@dataclass
class Record:
    """How the result calls what it was made of."""

    name: str = field(metadata={"help": "Of the result files."})
    model_name: str = field(metadata={"help": "How the result calls the model."})
    dataset_name: str = field(metadata={"help": "How the result calls the data."})
    results: str = field(default="benchmarks/results/recipe", metadata={"help": "Folder of the result files."})


def record(result: RecipeResult, names: Record) -> dict[str, Any]:
    """A result without what belongs to one machine's folders."""
    values = result.to_dict()
    settings = {name: value for name, value in values["settings"].items() if name not in _PLACES}
    values["settings"] = {"model": names.model_name, "dataset": names.dataset_name, **settings}
    data = result.settings.get("dataset")
    values["data"] = values["data"].replace(data, names.dataset_name) if data else values["data"]
    return {name: value for name, value in values.items() if name not in ("output", "paths")}


def times(values: dict[str, Any]) -> list[list[str]]:
    """Planned and taken, a stage a row; stages on a condition that were not run have no row."""
    expected = {each["title"]: each["seconds"] for each in values["plan"]["stages"]}
    rows = [
        [title, duration(expected[title]) if title in expected else "", duration(seconds)]
        for title, seconds in values["seconds"].items()
    ]
    planned = sum(expected.get(title, 0.0) for title in values["seconds"])
    taken = sum(values["seconds"].values())
    return [*rows, ["in all", duration(planned), f"{duration(taken)} ({100 * (taken / planned - 1):+.0f} %)"]]


def main() -> None:
    names, settings = parse([Record, RecipeSettings], sys.argv[1:], "bench_recipe.py", __doc__)
    result = run_recipe(settings)
    values = record(result, names)
    folder = Path(names.results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{names.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    header, rows = result.cells()
    machine = ", ".join(f"{name}: {value}" for name, value in values["machine"].items())
    parts = [
        f"# `bitdistill run` of {names.model_name} on {names.dataset_name}",
        markdown_table(header, rows),
        *result.sentences(),
        markdown_table(["stage", "planned", "taken"], times(values)),
        "What was decided, on held-out training rows:",
        "\n".join(f"- {choice}" for choice in values["choices"]),
        f"{machine}.",
    ]
    (folder / f"{names.name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
