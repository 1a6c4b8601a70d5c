"""`python -m hf_bitdistill`: the `bitdistill` command, for launchers that start modules (`torchrun -m`, `accelerate launch -m`)."""

import sys

from .cli.main import main


if __name__ == "__main__":
    sys.exit(main())
