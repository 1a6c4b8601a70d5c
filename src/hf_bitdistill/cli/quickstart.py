"""`bitdistill quickstart`: the whole recipe on a small model, in minutes, with nothing from the Hub."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from pathlib import Path

from ..quickstart import QuickstartError, QuickstartSettings, run_quickstart
from ..quickstart.settings import available_cores


# Load (as of `uptime`) from which other processes are at work, and the variables that say how OpenMP's threads wait.
_BUSY = 0.7
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

# Options of the command; the other settings are for programs.
_OPTIONS = {
    "seed": "of everything random",
    "threads": "of torch; default: all cores",
    "train_examples": "training examples of the task, at most",
    "test_examples": "held-out examples of the task, at most",
    "pretraining_steps": "steps of continual pre-training",
    "fine_tuning_steps": "steps of each of the three fine-tunings",
}


def run(argv: list[str], prog: str) -> None:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("quickstart"), help="for report.md, figures and models"
    )
    parser.add_argument("--no_progress", action="store_true", help="without progress bars")
    defaults = {field.name: field.default for field in dataclasses.fields(QuickstartSettings)}
    for name, text in _OPTIONS.items():
        shown = "" if defaults[name] is None else f" (default {defaults[name]})"
        parser.add_argument(f"--{name}", type=int, default=defaults[name], help=text + shown)
    options = parser.parse_args(argv)
    settings = {name: getattr(options, name) for name in _OPTIONS}
    if hint := _of_busy_machine(options.threads or available_cores()):
        print(hint, flush=True)
    try:
        run_quickstart(
            options.output_dir,
            progress=not options.no_progress,
            command=shlex.join(["bitdistill", "quickstart", *argv]),
            **settings,
        )
    except QuickstartError as error:
        raise ValueError(str(error)) from None


def _of_busy_machine(threads: int) -> str:
    """What to do where other processes use the cores, and OpenMP's threads spin while they wait for one that has none.

    OpenMP reads its settings when torch is imported, so they can only be given to the command.
    """
    if threads < 2 or not hasattr(os, "getloadavg") or any(name in os.environ for name in _WAITING):
        return ""
    load = os.getloadavg()[0]
    if load <= _BUSY or threads + load <= (os.cpu_count() or 1):
        return ""
    return (
        f"Other processes use this machine (load {load:.1f}): with OMP_WAIT_POLICY=passive in front of the command, or "
        "--threads 1, it takes a fraction of the time."
    )
