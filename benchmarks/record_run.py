"""Keeps a finished `bitdistill run` for the record: scores, bytes by kind, and the planned time of each stage beside the one it took.

    bitdistill run --model SMOLLM2 --dataset DATA/sst2 --effort standard --output_dir outputs/sst2
    python benchmarks/record_run.py outputs/sst2 --name smollm2_sst2 --model_name SmolLM2-135M-Instruct --dataset_name SST-2

Writes NAME.json and NAME.md into `--results`, and with `--card FILE` the packed student's card, which says what `--note` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from hf_bitdistill.files.model_folder import PACKED
from hf_bitdistill.hub.cards import card_text
from hf_bitdistill.hub.cards.folder_facts import folder_facts
from hf_bitdistill.modeling.sizes import bytes_by_kind
from hf_bitdistill.pages.tables import markdown_table
from hf_bitdistill.recipe import RecipeResult
from hf_bitdistill.recipe.progress import duration
from hf_bitdistill.recipe.run_facts import with_run


# What the files of one machine are called says nothing to a reader.
_PLACES = ("model", "dataset", "teacher", "corpus", "output_dir", "task")


def record(result: RecipeResult, model_name: str, dataset_name: str, note: str | None) -> dict[str, Any]:
    """A result without what belongs to one machine's folders, and what a reader has to know of this run."""
    values = result.to_dict()
    settings = {name: value for name, value in values["settings"].items() if name not in _PLACES}
    data = result.settings.get("dataset")
    return {
        **{name: value for name, value in values.items() if name not in ("output", "paths", "places")},
        "settings": {"model": model_name, "dataset": dataset_name, **settings},
        "data": values["data"].replace(data, dataset_name) if data else values["data"],
        "sizes": bytes_by_kind(result.output / PACKED).to_dict(),
        **({"note": note} if note else {}),
    }


def card(result: RecipeResult, note: str | None) -> str:
    """The card of the packed student, with what a reader has to know of the run.

    Raises:
        ValueError: the student there is not the one that the run measured.
    """
    folder = result.output.resolve() / PACKED
    facts = with_run(folder, folder_facts(folder, PACKED, PACKED))
    if facts.command is None:
        raise ValueError(f"{folder}: its scores are not those of the run; measure it by the run again")
    return card_text(dataclasses.replace(facts, sentences=[*facts.sentences, *([note] if note else [])]))


def times(result: RecipeResult) -> list[list[str]]:
    """Planned and taken, a stage a row; stages on a condition that were not run have no row."""
    expected = {each["title"]: each["seconds"] for each in result.plan["stages"]}
    rows = [
        [title, duration(expected[title]) if title in expected else "", duration(seconds)]
        for title, seconds in result.seconds.items()
    ]
    planned = sum(expected.get(title, 0.0) for title in result.seconds)
    difference = f" ({100 * (result.total_seconds / planned - 1):+.0f} %)" if planned else ""
    return [*rows, ["in all", duration(planned), duration(result.total_seconds) + difference]]


def page(result: RecipeResult, values: dict[str, Any]) -> str:
    """The record in Markdown."""
    header, rows = result.cells()
    settings = values["settings"]
    options = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("model", "dataset"))
    parts = [
        f"# `bitdistill run` of {settings['model']} on {settings['dataset']}",
        f"{values['data']}. Options: {options or 'none'}.",
        markdown_table(header, rows),
        *result.sentences(),
        markdown_table(["stage", "planned", "taken"], times(result)),
        "Decided on held-out training rows:",
        "\n".join(f"- {choice}" for choice in result.choices),
        f"{', '.join(f'{name}: {value}' for name, value in result.machine.items())}.",
        *([values["note"]] if "note" in values else []),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output_dir of the run")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--model_name", required=True, help="how the result calls the model")
    parser.add_argument("--dataset_name", required=True, help="how the result calls the data")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/recipe"))
    parser.add_argument("--note", help="what a reader has to know of this run, such as interruptions")
    parser.add_argument("--card", type=Path, help="file to write the packed student's card into")
    options = parser.parse_args()
    result = RecipeResult.load(options.run)
    values = record(result, options.model_name, options.dataset_name, options.note)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{options.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (options.results / f"{options.name}.md").write_text(page(result, values), encoding="utf-8")
    if options.card is not None:
        options.card.write_text(card(result, options.note), encoding="utf-8")


if __name__ == "__main__":
    main()
