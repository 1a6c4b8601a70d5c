"""What a student's folder tells for its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import AutoConfig
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME

from ...evaluation.score_record import read_record
from ...files.json_files import read_json
from ...modeling.sizes import bytes_by_kind
from .base_model_id import base_model_id
from .card import CARD, TAGS, TERNARY_TAGS, CardFacts, last_evaluation


# Of a card these say what the model is; they are found again. All others somebody has set.
_FOUND = ("library_name", "base_model", "base_model_relation", "pipeline_tag", "metrics", "tags", "model-index")


def folder_facts(folder: Path, title: str, repo: str) -> CardFacts:
    """Of a student that is packed, or is trained in this folder. What is set in the metadata of a card that is there stays: licence,
    language, data sets, tags.

    Args:
        title, repo: see [`CardFacts`].

    Raises:
        CheckpointError, ValueError: a file is damaged; one line names it.
    """
    quantization = read_json(folder / CONFIG_NAME)["quantization_config"]
    given, tags = _given(folder / CARD)
    state = folder / TRAINER_STATE_NAME
    return CardFacts(
        title=title,
        repo=repo,
        config=AutoConfig.from_pretrained(folder),
        base=base_model_id(folder),
        record=read_record(folder),
        scores=last_evaluation(read_json(state).get("log_history") or []) if state.is_file() else None,
        sizes=bytes_by_kind(folder) if quantization.get("quantization_mode") == "offline" else None,
        kept=quantization.get("modules_to_not_convert") or (),
        gguf=sorted(file.name for file in folder.glob("*.gguf")),
        tags=tags,
        metadata=given,
    )


def _given(card: Path) -> tuple[dict[str, Any], list[str]]:
    """What was set in a card's metadata, and tags besides ours.

    Raises:
        ValueError: it cannot be read.
    """
    if not card.is_file():
        return {}, []
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{card}: its metadata cannot be read ({' '.join(str(error).split())})") from error
    tags = [tag for tag in data.get("tags") or [] if tag not in (*TAGS, *TERNARY_TAGS)]
    return {name: value for name, value in data.items() if name not in _FOUND}, tags
