"""Run by `test_recipe.py` in several processes.

Usage: recipe_run.py SETTINGS.json [KILLED_RANK TITLE STEP]
Without more arguments: what is refused, then the recipe, each as the command. Else the recipe, in which a process is killed after so many
steps of the stage whose title begins so (of `pack`: in its midst).
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from hf_bitdistill.cli.main import main
from hf_bitdistill.machine import processes
from hf_bitdistill.recipe import RecipeSettings, run_recipe, stages
from hf_bitdistill.recipe.progress import Progress
from tiny_recipe import flags, without_figures


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killing(Progress):
    """Ends this process once so many steps of a stage are done."""

    def __init__(self, title: str, step: int):
        super().__init__()
        self.at = title, step

    def show(self, done, total, loss=None):
        super().show(done, total, loss)
        title, step = self.at
        if self._title.startswith(title) and done == step:
            die()


def be_killed(title: str, step: int) -> Progress:
    if title == "pack":
        save_packed = stages.save_packed

        def save(*args):
            save_packed(*args)
            die()

        stages.save_packed = save
    return Killing(title, step)


def commands(settings: dict, folder: Path) -> dict:
    """Exit statuses of commands that are refused, and of the run."""

    def run(what: str, **more) -> int:
        processes.wait()
        for stream in (sys.stdout, sys.stderr):
            print(f"--- {what}" if processes.is_first() else "", file=stream, flush=True)
        processes.wait()
        return main(["run", *flags(**{**settings, **more})])

    own = folder / f"disk-{processes.rank()}"
    own.mkdir()
    os.chdir(own)
    return {
        "batch": run("batch", batch_size=15),
        # The same name in every process, and not the same folder.
        "disks": run("disks", output_dir="out"),
        "seed": run("seed", seed=processes.rank()),
        "run": run("run"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    without_figures()
    file, *killed = sys.argv[1:]
    settings = json.loads(Path(file).read_text())
    if not killed:
        found = commands(settings, Path(file).parent)
        Path(f"{file}.{processes.rank()}").write_text(json.dumps(found))
    else:
        victim, title, step = killed
        progress = be_killed(title, int(step)) if processes.rank() == int(victim) else None
        run_recipe(RecipeSettings(**settings), progress=progress)
    processes.wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
