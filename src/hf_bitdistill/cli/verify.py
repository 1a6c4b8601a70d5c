"""`bitdistill verify`: is a packed student, here or on the Hub, the one that was packed?

Digests, codes and scales of every layer; then both loaders load it, each in a process of its own, and answer the prompts whose answers were
kept when the model was packed. Where none were kept, it says so. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.tensor_headers import CheckpointError


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a packed student")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument("--layers", action="store_true", help="also print the table of all packed layers")
    parser.add_argument(
        "--output", type=Path, metavar="PAGE.html", help="also write a page with that table and a picture"
    )
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    from ..verify import verify
    from ..verify.verify import table
    from ..verify.verify_page import HEADER, write_verification

    found = verify(options.model, **({"revision": options.revision} if options.revision else {}))
    for check in found.checks:
        print(f"  {({True: 'ok', False: 'FAILED', None: '?'})[check.passed]:<6} {check.name}: {check.found}")
    if options.layers:
        from ..pages.tables import markdown_table

        print(markdown_table(HEADER, list(table(found.layers))))
    if options.output:
        write_verification(found, options.output)
        print(f"  page: {options.output}")
    if not found.passed:
        raise CheckpointError(f"{options.model} is not as it was packed: {'; '.join(found.problems())}")
    untold = f" (not told: {', '.join(found.untold())})" if found.untold() else ""
    print(f"{options.model}: verified{untold}")
