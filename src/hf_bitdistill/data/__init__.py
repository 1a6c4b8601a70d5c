"""Tasks, prompts and corpora: everything that turns text into token ids.

- :mod:`.tasks`: the six tasks, their prompts and label words, in one place;
- :mod:`.data_files`: local data files: their formats, reading them, what is wrong with one;
- :mod:`.sources`: rows to train on and rows to measure on, from the Hub or from local files;
- :mod:`.recognition`: what the columns of a dataset say about it;
- :mod:`.task_loading`: reading a task's examples;
- :mod:`.preprocessing`: prompts and answers as token ids, and the collators for them;
- :mod:`.corpus`: reading a text corpus and packing it into blocks for continual pre-training;
- :mod:`.fingerprint`: what tells a dataset from another;
- :mod:`.pieces`: long texts in pieces, cut where it changes no token.
"""

from .corpus import load_corpus, pack_corpus
from .preprocessing import (
    PromptEncoder,
    batch_by_length,
    batch_for_tokens,
    build_dataset,
    collate,
    ensure_pad_token,
    label_word_ids,
    take_tokens,
)
from .task_loading import load_task_dataset
from .tasks import TASKS, Task, get_task, load_task


__all__ = [
    "TASKS",
    "PromptEncoder",
    "Task",
    "batch_by_length",
    "batch_for_tokens",
    "build_dataset",
    "collate",
    "ensure_pad_token",
    "get_task",
    "label_word_ids",
    "load_corpus",
    "load_task",
    "load_task_dataset",
    "pack_corpus",
    "take_tokens",
]
