"""`python -m hf_bitdistill`: the `bitdistill` command, for launchers that start modules (`torchrun -m`, `accelerate launch -m`)."""

import atexit
import os
import sys

from . import processes
from .cli.main import main


if __name__ == "__main__":
    status = main()
    if processes.world_size() == 1:
        sys.exit(status)
    # Freeing a group of processes together with the interpreter can wait for ever for gloo's threads.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
