"""The base model of a student, as the Hub knows it: by an id, or by a folder that tells one; and its licence."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import yaml
from huggingface_hub import CardData, ModelCard, ModelCardData, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers
from transformers.utils import CONFIG_NAME

from ...files.data_formats import looks_like_path
from ...files.json_files import read_json


CARD = "README.md"
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_FARTHEST = 5  # folders that name folders
# Seconds that a card may wait for each step of an answer with the licence of its base model.
_PATIENCE = 5.0


def hub_model_id(name: str | os.PathLike | None) -> str | None:
    """`name` if it can be the id of a model on the Hub; not a local folder (which nobody else can open), and no `Path`: that is one
    wherever it is looked at from."""
    if not isinstance(name, str) or looks_like_path(name) or os.path.exists(name):
        return None
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None


def exact_model_id(name: str | os.PathLike | None) -> str | None:
    """The id on the Hub of the model that is named: an id, or its copy in the Hub's cache."""
    return hub_model_id(name) or _of_cache(Path(name)) if name else None


def base_model_id(name: str | os.PathLike | None) -> str | None:
    """The id on the Hub of a base model that is named by its id, or by a folder that tells it: a copy in the Hub's cache, a card with a
    base model, a config.json that keeps the name of what it was saved from."""
    return next((found for _, found in _named(name) if found is not None), None)


def _named(name: str | os.PathLike | None) -> Iterator[tuple[str | os.PathLike, str | None]]:
    """A model, and what its folder says that it was made of, and so on, to the first that has an id: each with its id."""
    found = exact_model_id(name)
    for _ in range(_FARTHEST + 1):
        if not name:
            return
        yield name, found
        if found is not None:
            return
        folder = Path(name).expanduser()
        name = base_of(card_data(folder / CARD)) or _of_config(folder / CONFIG_NAME)
        # (A single name in a file is more likely a folder of the machine that wrote it.)
        found = exact_model_id(name) if name and "/" in name else None


def _of_cache(folder: Path) -> str | None:
    match = next((match for part in folder.parts if (match := _CACHED.fullmatch(part))), None)
    return f"{match[1]}/{match[2]}" if match else None


def card_data(card: str | Path) -> ModelCardData:
    """The metadata of a card, of its text or its file; nothing where there is none, or a damaged one."""
    try:
        text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
        if not text.lstrip().startswith("---"):
            return ModelCardData()  # (of which the client warns)
        return cast(ModelCardData, ModelCard(text, ignore_metadata_errors=True).data)
    except (OSError, ValueError, yaml.YAMLError):
        return ModelCardData()


def base_of(data: ModelCardData) -> str | None:
    """The base model that a card names, the first of several."""
    base = data.base_model
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) else None


def _of_config(config: Path) -> str | None:
    try:
        named = read_json(config).get("_name_or_path")
    except ValueError:
        return None
    return named if isinstance(named, str) else None


def license_of(base: str | os.PathLike | None) -> str | None:
    """What a model's own card says of its licence, or that of the model that it was made of, as far as its folder tells: beside the
    model, or on the Hub. `None` also where the Hub cannot be reached."""
    for place, found in _named(base):
        named = _license(card_data(Path(place).expanduser() / CARD))
        named = named or (_license_on_the_hub(found) if found is not None else None)
        if named is not None:
            return named
    return None


def _license(data: CardData) -> str | None:
    named = getattr(data, "license", None)
    return named if isinstance(named, str) else None


@functools.lru_cache(maxsize=64)
def _license_on_the_hub(repo_id: str) -> str | None:
    """Of the card in the Hub's cache, else on the Hub, which is asked once and not for long: a card without a licence is no failure."""
    try:
        file = try_to_load_from_cache(repo_id, CARD)
        if isinstance(file, str):
            return _license(card_data(Path(file)))
        if file is not None:  # (It is known that there is none.)
            return None
        # (A download would try again, and take a new session of the client, which others may be using.)
        address, headers = hf_hub_url(repo_id, CARD), build_hf_headers()
        answer = get_session().get(address, headers=headers, timeout=_PATIENCE, follow_redirects=True)
        return (
            _license(ModelCard(answer.text, ignore_metadata_errors=True).data) if answer.status_code == 200 else None
        )
    except (OSError, ValueError, RuntimeError, HTTPError, yaml.YAMLError):
        return None
