"""Starts the scripts of this folder in several processes on this machine, which meet over gloo; and what the scripts share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import warm


HERE = Path(__file__).parent
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a process of a test: one thread, no network, this folder's and the tests' modules importable."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **(more or {})}


def run(command: list[str], processes: int, timeout: float = 240.0, env: Mapping[str, str] | None = None):
    """Run a command in so many processes, by torchrun.

    Args:
        command: begins with a program.
        env: set beside `environment`.

    Returns:
        The finished `subprocess.CompletedProcess`, with both outputs as text.
    """
    return subprocess.run(
        [*LAUNCHER, f"--nproc-per-node={processes}", *command],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_script(
    name: str, processes: int, *arguments: str, timeout: float = 240.0, env: Mapping[str, str] | None = None
):
    """Run a script of this folder; fails with the end of what it printed.

    Raises:
        AssertionError: it ended with an error.
    """
    result = run([sys.executable, str(HERE / name), *arguments], processes, timeout, env)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result


def run_warm(name: str, processes: int, *arguments: str, timeout: float = 240.0) -> str:
    """As `run_script` where the launcher is not what is tested: in forks that have imported what takes seconds.

    Returns:
        What all of them printed.

    Raises:
        AssertionError: one ended with an error.
    """
    return warm.launch([sys.executable, str(HERE / name), *arguments], processes, environment(), timeout)


def message(work: Callable[[], object]) -> str:
    """What a script says of an error that it expects; "nothing" where there was none."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
