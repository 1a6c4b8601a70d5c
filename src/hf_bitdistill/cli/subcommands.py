"""A command with commands of its own: `bitdistill COMMAND KIND ...`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from hf_bitdistill_cli.parsing import formats_help
from hf_bitdistill_cli.spec import Spec


def run_subcommand(argv: list[str], prog: str, doc: str, kinds: Mapping[str, str], prefix: str) -> None:
    """Run one of them, or print the overview.

    Args:
        doc: what the overview begins with.
        kinds: name -> what the overview says. The module `prefix` + name in this package has `run(argv, prog)`.

    Raises:
        ValueError: none was named, or one that is not there.
    """
    name = argv[0] if argv else None
    if name in (None, "-h", "--help"):
        print(formats_help(Spec("formats", doc, formats=dict(kinds)), prog), end="")
        if name is None:
            raise ValueError(f"name a format: {', '.join(kinds)}")
        return
    if name not in kinds:
        raise ValueError(f"unknown format {name!r}; there are {', '.join(kinds)}")
    importlib.import_module(f".{prefix}{name}", __package__).run(argv[1:], f"{prog} {name}")
