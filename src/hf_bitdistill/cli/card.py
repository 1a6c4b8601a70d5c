"""`bitdistill card`: make or refresh the card of a student.

It says what the student's folder tells: base model, prompt, scores with standard errors, bytes, how the run made it. What was not measured is
absent. Licence, language, data sets and tags of a card that is there stay; its text is kept in README.previous.md (or README.previous-2.md, ...).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..hub.cards import CARD, card_text, set_aside, write_card
from ..hub.cards.folder_facts import folder_facts
from ..hub.source import find_source
from ..machine.environment import describe_environment
from ..recipe.decoding_speed import tokens_per_second
from ..recipe.result import PACKED_ROW
from ..recipe.run_facts import speed_table, with_run


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="a student, packed or trainable; a training's output; or that of bitdistill run"
    )
    parser.add_argument("--repo_id", help="where it will be published; default: the name of the folder")
    parser.add_argument("--base_model", help="its id on the Hub; default: what the folder tells")
    parser.add_argument("--license", help="default: that of the base model or of the card that is there")
    parser.add_argument(
        "--speed", action="store_true", help="also time the packed student on this CPU (about a minute)"
    )
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    source = find_source(options.folder)
    folder = source.model.resolve()
    name = options.repo_id or folder.name
    facts = with_run(folder, folder_facts(folder, name.split("/")[-1], name), options.repo_id is not None)
    if options.base_model:
        facts = dataclasses.replace(facts, base=options.base_model)
    if options.license:
        facts.metadata["license"] = options.license
    if options.speed:
        facts = dataclasses.replace(facts, speed=_speed(folder, source.packed is not None))
    card = folder / CARD
    if card.is_file() and card.read_text(encoding="utf-8").strip() != card_text(facts).strip():
        print(f"{card}: what was there is {set_aside(card).name} now")
    print(write_card(folder, facts))


def _speed(folder: Path, is_packed: bool) -> str | None:
    if not is_packed:
        raise ValueError(f"{folder} is not packed: --speed times packed students (bitdistill pack makes one)")
    rate, note = tokens_per_second(folder, packed=True)
    if rate is None:
        raise ValueError(note)
    table = speed_table({PACKED_ROW: rate}, describe_environment())
    return "\n\n".join(filter(None, (table, note)))
