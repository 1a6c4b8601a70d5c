"""`bitdistill export gguf`: a student as one GGUF file for llama.cpp and the programs built on it.

Rows that are no multiple of the 256 weights of a block of tq2_0 and tq1_0, and scales for groups, are stored as q2_0 (blocks of 64); below
the table of types these tensors are named.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def make_parser(prog: str) -> argparse.ArgumentParser:
    from ..export.gguf_encoding import TABLE_TYPES, TERNARY_TYPES

    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_file_options(parser)
    parser.add_argument(
        "--type", default="tq2_0", choices=list(TERNARY_TYPES), help="of ternary matrices (default: tq2_0)"
    )
    parser.add_argument(
        "--table", default="q8_0", choices=list(TABLE_TYPES), help="of embedding and head (default: q8_0)"
    )
    parser.add_argument(
        "--no_q2_0",
        action="store_true",
        help="q4_0 in place of q2_0, with the same weights: twice as large, but known to every llama.cpp, and faster where that has no "
        "kernels for q2_0 (x86)",
    )
    return parser


def run(argv: list[str], prog: str) -> None:
    from ..export import export_gguf

    options = make_parser(prog).parse_args(argv)
    stored = {"type": options.type, "table": options.table, "allow_q2_0": not options.no_q2_0}
    print(export_gguf(options.model, options.output, **stored, **file_options(options)).text())


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """What every kind of GGUF file is told."""
    parser.add_argument("model", help="folder or Hub id of a student, packed or in training")
    parser.add_argument("output", type=Path, metavar="OUT.gguf", help="file to write")
    parser.add_argument(
        "--pre_tokenizer", help="name of llama.cpp's pre-tokenizer, where the tokenizer is none that is known here"
    )
    parser.add_argument("--name", help="of the model, in the file (default: from MODEL)")
    parser.add_argument("--revision", help="of a model on the Hub")


def file_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those of [`add_file_options`] that are keywords of the functions."""
    hub = {"revision": options.revision} if options.revision else {}
    return {"pre_tokenizer": options.pre_tokenizer, "name": options.name, **hub}
