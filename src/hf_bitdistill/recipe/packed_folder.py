"""The packed student of a run in its own folder, in the place of the one of an earlier run."""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ..evaluation.score_record import Record
from ..files.json_files import read_json
from ..files.model_folder import replace_model
from ..files.weight_files import EXPLICIT_NAME, local_weight_files
from ..hub.cards import CARD, EVAL_RESULTS, CardFacts, set_aside, write_card
from ..hub.cards.retold import taken_over


def put_packed(
    place: Path, model: Path, record: Record, tell: Callable[[Path], CardFacts], say: Callable[[str], None]
) -> None:
    """Write a packed student with its card and its scores into `place`. What a user put there stays: other files (GGUF), and licence,
    language and tags in the card, data sets if it is the same student. The text of another card than the new one is set aside.

    Args:
        place: the folder that is read by others; an earlier student in it is there until the new one is.
        model: the student's folder, which stays.
        record: its scores.
        tell: what is known of the student in a folder, for its card.
        say: takes lines for people.
    """
    gguf, is_same, old = sorted(file.name for file in place.glob("*.gguf")), _same_weights(place, model), place / CARD
    if gguf and not is_same:
        say(f"{', '.join(gguf)} in {place}: of the student that was there before; export it again")
        gguf = []
    with replace_model(place) as aside:
        shutil.copytree(model, aside, ignore=shutil.ignore_patterns(".cache"), dirs_exist_ok=True)
        record.write(aside)
        facts = dataclasses.replace(tell(aside), gguf=gguf)
        if old.is_file():
            with contextlib.suppress(ValueError):  # (damaged: it is set aside, and nothing of it is taken over)
                facts = taken_over(old.read_text(encoding="utf-8"), facts, is_same)
        write_card(aside, facts)
        if old.is_file() and _words(old) != _words(aside / CARD):
            say(f"{old}: what was there is {set_aside(old).name} now")
        if not (aside / EVAL_RESULTS).is_file():
            (place / EVAL_RESULTS).unlink(missing_ok=True)


def _same_weights(folder: Path, other: Path) -> bool:
    try:
        one, two = (
            {file.name: file for file in local_weight_files(each, read_json(each / "config.json").get(EXPLICIT_NAME))}
            for each in (folder, other)
        )
    except (OSError, ValueError):  # no model, or a damaged one
        return False
    return one.keys() == two.keys() and all(filecmp.cmp(one[name], two[name], shallow=False) for name in one)


def _words(card: Path) -> str:
    """The text without its numbers: the same run measures speeds again."""
    return re.sub(r"[\d.,]+", "0", card.read_text(encoding="utf-8", errors="replace").strip())
