"""What a student's config.json says to whoever reads it: how the model is loaded. transformers alone tells them no more than that it does
not know the quantisation."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME


NOTE = "_comment"
_TEXT = (
    "a ternary student of hf-bitdistill: pip install hf-bitdistill, and `import hf_bitdistill` before from_pretrained; for a program that "
    "does not import it: `bitdistill exec -- PROGRAM`, or `bitdistill autoload on` for all of them"
)


def write_note(folder: Path) -> None:
    """Put the note first into the config.json that was just saved in a folder."""
    file = folder / CONFIG_NAME
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({NOTE: _TEXT, **content}, indent=2) + "\n", encoding="utf-8")


def remove_note(config: PreTrainedConfig) -> None:
    """Take the note off a config that was loaded: it is of the file, and no part of the model."""
    config.__dict__.pop(NOTE, None)
