"""The quickstart's task: write the summary line of a function's or class's documentation, given its signature.

def crop(image, box)
Summary: Return a rectangular region of the image.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..data import Task
from .corpus import CorpusError, Document, Split, paragraph_key, split_of


if TYPE_CHECKING:
    from datasets import Dataset

TASK = Task(
    name="docstring_summary",
    prompt="{signature}\nSummary:",
    target_field="summary",
    max_length=96,
    max_new_tokens=32,
)

_CHARACTERS = range(20, 121)
_MIN_LETTERS = 0.8
_MAX_SIGNATURE = 90


def summary_line(document: Document) -> str | None:
    """The first sentence of a docstring, on one line; `None` where there is no signature or no plain sentence."""
    if not document.signature or len(document.signature) > _MAX_SIGNATURE:
        return None
    text = re.sub(r"\s+", " ", document.paragraphs[0]).strip()
    sentence = re.split(r"(?<=[a-z0-9)`]\.) ", text, maxsplit=1)[0]
    letters = sum(character.isalpha() or character == " " for character in sentence)
    plain = sentence[:1].isalpha() and " " in sentence and letters >= _MIN_LETTERS * len(sentence)
    return sentence if plain and len(sentence) in _CHARACTERS else None


def build_examples(
    documents: Iterable[Document], sizes: dict[Split, int], seed: int = 0, smallest: int = 50
) -> dict[Split, Dataset]:
    """Examples of the task, by split.

    Documentation that begins alike (equal [`paragraph_key`], which also decides the split) counts once.

    Args:
        documents: from [`extract`].
        sizes: wanted number of examples of each split; there may be fewer.
        seed: of the choice and of the order.
        smallest: fewer examples than this (or than wanted, if that is less) are an error.

    Returns:
        Datasets with the columns `signature` and `summary`.

    Raises:
        CorpusError: there is too little text.
    """
    from datasets import Dataset

    found: dict[str, tuple[str, str, Split]] = {}
    for document in documents:
        if summary := summary_line(document):
            paragraph = document.paragraphs[0]
            found.setdefault(paragraph_key(paragraph), (document.signature, summary, split_of(paragraph)))
    examples = {}
    for split, wanted in sizes.items():
        rows = [(signature, summary) for signature, summary, where in found.values() if where == split]
        if len(rows) < min(wanted, smallest):
            raise CorpusError(
                f"the {split} split has only {len(rows)} documented functions; packages installed without .py files, or "
                "with their docstrings removed, have no text"
            )
        random.Random(f"{seed} {split}").shuffle(rows)
        signatures, summaries = zip(*rows[:wanted], strict=True)
        examples[split] = Dataset.from_dict({"signature": list(signatures), "summary": list(summaries)})
    return examples
