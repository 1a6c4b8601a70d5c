"""`bitdistill quickstart`: the whole recipe on a small model, in minutes, with nothing from the Hub.

The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..quickstart import run_quickstart
from .runs import says_how_to_go_on


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("quickstart"), help="for data, stages, packed student, report.html"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--threads", type=int, default=None, help="of torch (default: all cores)")
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    with says_how_to_go_on(prog, argv):
        run_quickstart(**vars(options))
