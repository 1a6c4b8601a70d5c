"""The tokenizer of a model."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ..modeling.locate import find_model
from .preprocessing import ensure_pad_token


# How the files of a tokenizer begin, of whatever kind it is.
_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "merges", "tekken")


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token.

    Raises:
        FileNotFoundError, OSError: there is none.
        ValueError: its files are damaged.
    """
    path = find_model(name_or_path)
    folder = Path(path)
    if folder.is_dir() and not any(file.name.startswith(_TOKENIZER_FILES) for file in folder.iterdir()):
        raise FileNotFoundError(
            f"{path} has no tokenizer: put the model's there with tokenizer.save_pretrained({path!r})"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except OSError:
        raise
    except Exception as error:  # of any kind, and naming no file
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: its tokenizer cannot be read ({type(error).__name__}: {line})") from error
    return ensure_pad_token(tokenizer)
