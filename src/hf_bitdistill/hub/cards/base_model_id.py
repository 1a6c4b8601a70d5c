"""The base model of a student, as the Hub knows it: by an id, or by a folder that tells one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME

from ...files.json_files import read_json


_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_FARTHEST = 5  # folders that name folders


def hub_model_id(name: str | None) -> str | None:
    """`name` if it can be the id of a model on the Hub; not a local folder (which nobody else can open)."""
    if name and not os.path.exists(name) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return name
    return None


def exact_model_id(name: str | os.PathLike | None) -> str | None:
    """The id on the Hub of the model that is named: an id, or its copy in the Hub's cache."""
    return hub_model_id(str(name)) or _of_cache(Path(name)) if name else None


def base_model_id(name: str | os.PathLike | None) -> str | None:
    """The id on the Hub of a base model that is named by its id, or by a folder that tells it: a copy in the Hub's cache, a card with a
    base model, a config.json that keeps the name of what it was saved from."""
    found = exact_model_id(name)
    for _ in range(_FARTHEST):
        if found is not None or not name:
            break
        folder = Path(name).expanduser()
        name = _of_card(folder / "README.md") or _of_config(folder / CONFIG_NAME)
        # (A single name in a file is more likely a folder of the machine that wrote it.)
        found = exact_model_id(name) if name and "/" in name else None
    return found


def _of_cache(folder: Path) -> str | None:
    match = next((match for part in folder.parts if (match := _CACHED.fullmatch(part))), None)
    return f"{match[1]}/{match[2]}" if match else None


def card_data(card: Path) -> ModelCardData | None:
    """The metadata of a card; `None` where there is none, or a damaged one."""
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data if card.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _of_card(card: Path) -> str | None:
    base = getattr(card_data(card), "base_model", None)
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) else None


def _of_config(config: Path) -> str | None:
    try:
        named = read_json(config).get("_name_or_path")
    except ValueError:
        return None
    return named if isinstance(named, str) else None


def license_of(base: str | None) -> str | None:
    """What a model's own card says of its licence, if it lies beside the model."""
    data = card_data(Path(base).expanduser() / "README.md") if base else None
    named = getattr(data, "license", None)
    return named if isinstance(named, str) else None
