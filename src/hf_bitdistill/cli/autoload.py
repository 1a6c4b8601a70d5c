"""`bitdistill autoload on | off | status`: have every Python program of this environment load ternary models.

A start-up file of two lines in site-packages registers the quantizer when a program imports the part of transformers that loads models; until
then nothing is imported.
"""

from __future__ import annotations

import argparse

from ..autoload import start_file


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("action", choices=["on", "off", "status"])
    parser.add_argument("--user", action="store_true", help="on: for your own site-packages, not the environment's")
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    if options.action == "on":
        print(f"on: {start_file.install(options.user)}")
    elif options.action == "off":
        removed = start_file.remove()
        print("off" + "".join(f": removed {file}" for file in removed))
    else:
        print(_status())


def _status() -> str:
    files = start_file.installed()
    if not files:
        return "off"
    lines = []
    for file in files:
        note = "" if start_file.is_current(file) else ", of another installation: `bitdistill autoload on` renews it"
        lines.append(f"on: {file}{note}")
    if not start_file.is_active():
        lines.append("but Python does not run it: `bitdistill autoload on` says why")
    return "\n".join(lines)
