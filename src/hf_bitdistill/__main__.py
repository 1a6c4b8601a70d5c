"""`python -m hf_bitdistill`: the `bitdistill` command, for launchers that start modules (`torchrun -m`, `accelerate launch -m`)."""

import sys

from hf_bitdistill_cli import script


if __name__ == "__main__":
    sys.exit(script())
