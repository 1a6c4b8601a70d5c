"""What of the libraries reaches the terminal of a command: their warnings and their bars of work, not their notices nor a bar for every file."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

from hf_bitdistill_cli import VERBOSE


# Logger -> how its notices begin that say nothing to a user of a command: what they speak of is meant to be so.
_NOTICES = {
    "transformers.trainer_utils": ("The tokenizer has new PAD/BOS/EOS tokens",),
    "DeepSpeed": ("Setting accelerator to CPU",),
}


class _WithoutNotices(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]):
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def all_are_wanted(argv: Sequence[str] = ()) -> bool:
    """Whether a command line, or the environment, asks for what the libraries say."""
    asked = any(word.startswith(("--log_level", "--log-level")) for word in argv)
    return asked or bool(os.environ.get(VERBOSE) or os.environ.get("TRANSFORMERS_VERBOSITY"))


@contextlib.contextmanager
def without_notices(argv: Sequence[str] = ()) -> Iterator[None]:
    """While it lasts, without notices, and without transformers' bars of loading and saving; those of downloads stay. Nothing is changed
    where [`all_are_wanted`]."""
    if all_are_wanted(argv):
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    filters = {name: _WithoutNotices(beginnings) for name, beginnings in _NOTICES.items()}
    bars, downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    for name, each in filters.items():
        logging.getLogger(name).addFilter(each)
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        for name, each in filters.items():
            logging.getLogger(name).removeFilter(each)
        if bars:
            transformers_logging.enable_progress_bar()
