"""A card of this library that is there already, told of what is published: the forms to load, the bytes; its other words stay."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from huggingface_hub import ModelCard

from .base_model_id import base_model_id, base_of, card_data, license_of
from .card import TAGS, TERNARY_TAGS, CardFacts, card_text


# Of a card these say what the model is; they are found again. All others somebody has set.
_FOUND = ("library_name", "base_model", "base_model_relation", "pipeline_tag", "metrics", "tags", "model-index")
_LOADING, _SIZE = "Loading", "Size"
_PACKED_ALONE = (True, False)  # see `_forms`


def given(card: str) -> tuple[dict[str, Any], list[str]]:
    """What was set in a card's metadata (licence, language, data sets, ...), and tags besides ours.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        data = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"its metadata cannot be read ({' '.join(str(error).split())})") from error
    tags = [tag for tag in data.get("tags") or [] if tag not in (*TAGS, *TERNARY_TAGS)]
    return {name: value for name, value in data.items() if name not in _FOUND}, tags


def retell(card: str, facts: CardFacts) -> str:
    """A card of ours with the loading of the forms that `facts` names, where it tells of others, and with the bytes, where it has none."""
    made = _made(facts)
    loading = made.get(_LOADING)
    parts = [
        (title, _loading(text, loading, facts) if title == _LOADING and loading is not None else text)
        for title, text in _parts(card)
    ]
    titles = [title for title, _ in parts]
    if _SIZE in made and _SIZE not in titles and _LOADING in titles:
        parts.insert(titles.index(_LOADING), (_SIZE, _ending(made[_SIZE], "\n\n")))
    return "".join(text for _, text in parts)


def taken_over(card: str, facts: CardFacts, same_student: bool) -> CardFacts:
    """The facts of a student, with what was set in a card that is there before: but, if that is of another one, its data, and a licence
    that was of another base model.

    Raises:
        ValueError: the card's metadata cannot be read.
    """
    told, tags = given(card)
    if not same_student:
        told.pop("datasets", None)
        known = facts.metadata.get("license") or license_of(facts.base)
        if known is not None and base_of(card_data(card)) != base_model_id(facts.base):
            told["license"] = known
    return dataclasses.replace(
        facts, metadata={**facts.metadata, **told}, tags=list(dict.fromkeys([*tags, *facts.tags]))
    )


def _made(facts: CardFacts) -> dict[str, str]:
    """The sections of a new card."""
    return dict(_parts(card_text(facts)))


def _loading(text: str, made: str, facts: CardFacts) -> str:
    """The section on loading, of the forms that `facts` names, of which a new card's section is `made`."""
    if _forms(text) == _forms(made):
        return text
    if _forms(text) == _PACKED_ALONE and facts.push_format == "both":
        online = _made(dataclasses.replace(facts, push_format="online", gguf=()))[_LOADING]
        made = text.rstrip("\n") + online.removeprefix(f"## {_LOADING}")
    return _ending(made, text)


def _parts(card: str) -> list[tuple[str, str]]:
    """Title and text of each section, all of the card together; what is above the first has the title `""`."""
    parts, title, lines, is_code = list[tuple[str, str]](), "", list[str](), False
    for line in card.splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if line.startswith("## ") and not is_code:
            parts.append((title, "".join(lines)))
            title, lines = line[3:].strip(), []
        lines.append(line)
    return [*parts, (title, "".join(lines))]


def _ending(text: str, like: str) -> str:
    """With as many empty lines after it as another text has."""
    return text.rstrip("\n") + like[len(like.rstrip("\n")) :]


def _forms(loading: str) -> tuple[bool, bool]:
    """Whether a section on loading tells of the packed student, and of the trainable one."""
    return "optimum.bitnet" in loading, 'subfolder="online"' in loading
