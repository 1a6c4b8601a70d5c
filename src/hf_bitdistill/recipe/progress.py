"""What a run prints: a line a stage, with the time left of the stage and of the run, and nothing of the libraries."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TextIO

from transformers import TrainerCallback

from ..machine import processes
from ..machine.notices import all_are_wanted, without_notices


# Seconds between two lines of one stage where lines cannot be overwritten (a file, a pipe), and where they can.
_PLAIN, _TERMINAL = 60.0, 0.5


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s`, `12 s`."""
    seconds = max(0, round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


class Progress:
    """The lines of a run. Of several processes the first speaks.

    Args:
        stream: default: standard output.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.silent = not processes.is_first()
        self.expected: dict[str, float] = {}
        self._title, self._started, self._shown, self._in_parts = "", 0.0, 0.0, False
        # What the speed of a stage is counted from: steps or rows, and when they were done.
        self._first: tuple[int, float] | None = None
        self._resumed = False

    def say(self, text: str) -> None:
        self._print(f"{text}\n")

    def _print(self, text: str) -> None:
        if not self.silent:
            print(text, end="", file=self.stream, flush=True)

    def plan(self, expected: dict[str, float]) -> None:
        """Seconds expected of each stage, by title."""
        self.expected = dict(expected)

    @contextlib.contextmanager
    def stage(self, title: str, in_parts: bool = False) -> Iterator[None]:
        """A stage that is about to run; `show` then is about it. Its expected time no longer counts as left when it ends.

        Args:
            in_parts: there are more of that title, so that some of it is left ([`took`]).
        """
        self._title, self._started, self._shown = title, time.perf_counter(), 0.0
        self._first, self._resumed, self._in_parts = None, False, in_parts
        try:
            yield
        finally:
            if not in_parts:
                self.expected.pop(title, None)

    def took(self, title: str, seconds: float) -> None:
        """A part of what was expected of a title is done."""
        if title in self.expected:
            self.expected[title] = max(self.expected[title] - seconds, 0.0)

    def show(self, done: int, total: int, loss: float | None = None) -> None:
        """Steps that are done. A stage whose first step is not the first of all goes on where an earlier run stopped."""
        now = time.perf_counter()
        if self._first is None and done > 1 and not self._resumed:
            # How long the next step takes is not asked: it may come after a way through what was done.
            self._resumed = True
            self.done(f"{self._title}: goes on after step {done} of {total}")
            return
        if self._first is None:
            self._first = (done, now) if self._resumed else (0, self._started)
        self._show(f"step {done} of {total}", done, total, now, "" if loss is None else f", loss {loss:.4g}")

    def show_rows(self, done: int, total: int) -> None:
        """Rows that an evaluation has done; 0 where it begins."""
        now = time.perf_counter()
        if not done or self._first is None:
            self._first, self._shown = (done, now), 0.0
        self._show(f"row {done} of {total}", done, total, now)

    def _show(self, text: str, done: int, total: int, now: float, more: str = "") -> None:
        """A line, if it is time for one."""
        first, started = self._first or (0, self._started)
        if now - (self._shown or started) < (_TERMINAL if self.terminal else _PLAIN) or done <= first:
            return
        self._shown = now
        left = (now - started) / (done - first) * (total - done)
        later = sum(seconds for title, seconds in self.expected.items() if title != self._title)
        if self._in_parts:
            later += max(self.expected.get(self._title, 0.0) - (now - self._started) - left, 0.0)
        text = f"  {self._title}: {text}, {duration(left)} left"
        if later:
            text += f", of the run about {duration(left + later)}"
        text += more
        if self.terminal:
            self._print(f"\r\x1b[K{text}")
        else:
            self.say(text)

    def done(self, text: str) -> None:
        """The line that a stage leaves."""
        self.say(f"{chr(13) + chr(27) + '[K' if self.terminal else ''}  {text}")


class ProgressCallback(TrainerCallback):
    """Tells a `Progress` what a `Trainer` does."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.loss: float | None = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.loss = float(logs["loss"])

    def on_step_begin(self, args, state, control, **kwargs):
        self.progress.show(state.global_step, state.max_steps, self.loss)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own bars and notices, unless they are wanted: the stages say what happens. Of several processes the first has
    warnings."""
    if all_are_wanted():
        yield
        return
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    datasets_level = logging.getLogger("datasets").level
    bars = not are_progress_bars_disabled()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        with without_notices(), warnings.catch_warnings():
            if not processes.is_first():
                warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        logging.getLogger("datasets").setLevel(datasets_level)
        if transformers_bars:
            transformers_logging.enable_progress_bar()
        if bars:
            enable_progress_bars()
