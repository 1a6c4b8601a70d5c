"""`bitdistill report`: losses, scores and weights of a run on one self-contained HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report import write_report


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("run_dir", type=Path, help="output folder of pretrain, distill or warm-start")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the folder)")
    parser.add_argument("--before", type=Path, help="folder of the model the run started from, for the weights")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=FILE.json",
        help="a result of bitdistill evaluate (teacher, baseline), for the bars; may be repeated",
    )
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    compared = {}
    for entry in options.compare:
        name, separator, file = entry.partition("=")
        if not (name and separator and file):
            raise ValueError(f"--compare {entry!r} must be NAME=FILE.json")
        compared[name] = Path(file)
    page = write_report(options.run_dir, options.output, options.before, compared)
    print(f"{page}: {page.stat().st_size / 1e3:.0f} kB; its figures are in {page.with_suffix('')}")
