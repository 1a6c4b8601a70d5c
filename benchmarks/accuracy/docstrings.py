"""Docstrings of installed packages as text and as a task: what a benchmark can read without any data (`bitdistill quickstart` does)."""

from __future__ import annotations

from functools import cache

from datasets import Dataset

from hf_bitdistill.quickstart.corpus import QUICKSTART_PACKAGES, Document, Split, extract, split_texts
from hf_bitdistill.quickstart.settings import QuickstartSettings, available_cores
from hf_bitdistill.quickstart.task import TASK, build_examples


__all__ = ["SETTINGS", "TASK", "examples", "texts"]

SETTINGS = QuickstartSettings()


@cache
def _documents() -> list[Document]:
    return extract(QUICKSTART_PACKAGES, int(SETTINGS.source_megabytes * 1e6), available_cores())


@cache
def texts(split: Split) -> list[str]:
    """Plain text of a split."""
    return split_texts(_documents(), split)


def examples(split: Split, count: int) -> Dataset:
    """At most `count` examples of the task, always the same ones."""
    return build_examples(_documents(), {split: count})[split]
