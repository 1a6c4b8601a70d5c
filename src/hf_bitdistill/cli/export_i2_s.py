"""`bitdistill export i2_s`: a student as a GGUF file with I2_S tensors, for bitnet.cpp (github.com/microsoft/BitNet).

Needs a student with one scale a matrix (weight_granularity "tensor").
"""

from __future__ import annotations

import argparse

from .export_gguf import add_file_options, file_options


def make_parser(prog: str) -> argparse.ArgumentParser:
    from ..gguf_format.i2_s_layout import LAYOUTS

    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_file_options(parser)
    parser.add_argument(
        "--layout",
        default="x86",
        choices=list(LAYOUTS),
        help="order of the codes: x86 (default; also that of the files that bitnet.cpp publishes), or arm, for builds with NEON of "
        "November 2025 and later",
    )
    return parser


def run(argv: list[str], prog: str) -> None:
    from ..export import export_i2_s

    options = make_parser(prog).parse_args(argv)
    print(export_i2_s(options.model, options.output, options.layout, **file_options(options)).text())
