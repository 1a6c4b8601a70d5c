"""`python -m hf_bitdistill`: the `bitdistill` command, for launchers that start modules (`torchrun -m`, `accelerate launch -m`)."""

import atexit
import os
import sys

from hf_bitdistill_cli import script

from .machine import processes


if __name__ == "__main__":
    status = script()
    if processes.world_size() == 1:
        sys.exit(status)
    # Freeing a group of processes together with the interpreter can wait for ever for gloo's threads.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
