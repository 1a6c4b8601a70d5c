"""What a student's folder tells for its card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME

from ...evaluation.score_record import read_record
from ...files.json_files import read_json
from ...modeling.sizes import bytes_by_kind
from .base_model_id import base_model_id, license_of
from .card import CARD, CardFacts, last_evaluation
from .retold import given


def folder_facts(
    folder: Path, title: str, repo: str, beside: Sequence[Path] = (), base: str | PathLike | None = None
) -> CardFacts:
    """Of a student that is packed, or is trained in this folder. What is set in the metadata of a card that is there stays: licence,
    language, data sets, tags.

    Args:
        title, repo: see [`CardFacts`].
        beside: folders that tell of the same student what `folder` does not: the one that it was packed from, that of its run.
        base: what it was made of or loaded from, where no folder tells.

    Raises:
        CheckpointError, ValueError: a file is damaged; one line names it.
    """
    places = list(dict.fromkeys((folder, *beside)))
    quantization = read_json(folder / CONFIG_NAME)["quantization_config"]
    set_before, tags = given_metadata(*places)
    record = _first(map(read_record, places))
    named = [*places, *([base] if base else [])]
    return CardFacts(
        title=title,
        repo=repo,
        config=AutoConfig.from_pretrained(folder),
        base=_first(map(base_model_id, named)),
        record=record,
        scores=_first(map(_of_trainer, places)) if record is None else None,
        sizes=bytes_by_kind(folder) if quantization.get("quantization_mode") == "offline" else None,
        kept=quantization.get("modules_to_not_convert") or (),
        gguf=sorted(file.name for file in folder.glob("*.gguf")),
        tags=tags,
        metadata={"license": _first(map(license_of, named)), **set_before},
    )


def given_metadata(*folders: Path) -> tuple[dict[str, Any], list[str]]:
    """As [`given`], of the card in the first folder that has one.

    Raises:
        ValueError: its metadata cannot be read.
    """
    card = next((folder / CARD for folder in folders if (folder / CARD).is_file()), None)
    if card is None:
        return {}, []
    try:
        return given(card.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{card}: {error}") from error


def _of_trainer(folder: Path) -> str | None:
    state = folder / TRAINER_STATE_NAME
    return last_evaluation(read_json(state).get("log_history") or []) if state.is_file() else None


def _first(found: Iterable[Any]) -> Any:
    """The first that is not `None`; those after it are not asked for."""
    return next((each for each in found if each is not None), None)
