"""What lies beside the weights of a model that is written in another format: tokenizer, generation settings, card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from .._compat import cached_file_or_none


logger = logging.getLogger(__name__)


def carry_settings(model_id: str | Path, folder: Path, **hub: Any) -> PreTrainedTokenizerBase | None:
    """Write the tokenizer and the generation settings of a model, those that it has, into a folder. Returns the tokenizer; without one there is a
    warning, because nobody can use the model by itself.

    Args:
        hub: options of `from_pretrained` of transformers (`revision`, `token`, ...).
    """
    parts: dict[type, Any] = {}
    for kind in (AutoTokenizer, GenerationConfig):
        try:
            parts[kind] = kind.from_pretrained(model_id, **hub)
        except Exception as error:  # a damaged tokenizer.json raises that class itself
            line = " ".join(str(error).split())
            if kind is AutoTokenizer:
                logger.warning(
                    f"{model_id}: what is written has no tokenizer, because there is none that can be read ({line})"
                )
            else:
                logger.info(f"{model_id}: no generation settings ({line})")
        else:
            parts[kind].save_pretrained(folder)
    return parts.get(AutoTokenizer)


def carry_card(model_id: str, folder: Path, note: str, **hub: Any) -> None:
    """Write the card of a model into a folder, with a note above its text; a card of the note alone if it has none."""
    file = cached_file_or_none(model_id, REPOCARD_NAME, offline=True, **hub)
    card = Path(file).read_text(encoding="utf-8") if file is not None else "---\nlibrary_name: transformers\n---\n"
    metadata = REGEX_YAML_BLOCK.search(card)
    head, body = (card[: metadata.end()], card[metadata.end() :]) if metadata else ("", card)
    parts = [part for part in (head.rstrip("\n"), f"> {note}", body.strip("\n")) if part]
    (folder / REPOCARD_NAME).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
