"""Run by `test_commands.py`: a command in several processes, in which something happens. Usage: command_run.py WHAT WHERE COMMAND [OPTIONS]

WHAT is `nothing`; `kill-step` or `kill-forward`: the second process is killed before its third step of a training, or forward pass of an
evaluation, unless the file WHERE is there, which it leaves; or `disks`: each process works in a folder of its own below WHERE.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from hf_bitdistill.cli.main import main
from hf_bitdistill.machine import processes


def kill_at_third(function, marker: Path):
    """The function, of which the second process does not survive the third call."""
    calls = 0

    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 3 and processes.rank() == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


torch.set_num_threads(1)
what, where = sys.argv[1], Path(sys.argv[2])
if what == "kill-step":
    from hf_bitdistill.training import ReliableTrainer

    ReliableTrainer.training_step = kill_at_third(ReliableTrainer.training_step, where)
elif what == "kill-forward":
    from hf_bitdistill.evaluation import likelihood

    likelihood.forward_logits = kill_at_third(likelihood.forward_logits, where)
elif what == "disks":
    own = where / f"disk{processes.rank()}"
    own.mkdir(parents=True, exist_ok=True)
    os.chdir(own)
print(f"started at {time.time()}", file=sys.stderr, flush=True)  # (how long imports take is the machine's matter)
sys.exit(main(sys.argv[3:]))
