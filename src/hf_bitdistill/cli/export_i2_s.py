"""`bitdistill export i2_s`: a student as a GGUF file with I2_S tensors, for bitnet.cpp (github.com/microsoft/BitNet).

Needs a student with one scale a matrix (weight_granularity "tensor").
"""

from __future__ import annotations

import argparse
from pathlib import Path


def run(argv: list[str], prog: str) -> None:
    from ..export import export_i2_s
    from ..gguf_format.i2_s import LAYOUTS

    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or Hub id of a student, packed or in training")
    parser.add_argument("output", type=Path, metavar="OUT.gguf", help="file to write")
    parser.add_argument(
        "--layout",
        default="x86",
        choices=list(LAYOUTS),
        help="order of the codes: x86 (default; also that of the files that bitnet.cpp publishes), or arm, for builds with NEON of "
        "November 2025 and later",
    )
    parser.add_argument(
        "--pre_tokenizer", help="name of llama.cpp's pre-tokenizer, where the tokenizer is none that is known here"
    )
    parser.add_argument("--name", help="of the model, in the file (default: from MODEL)")
    parser.add_argument("--revision", help="of a model on the Hub")
    options = parser.parse_args(argv)
    result = export_i2_s(
        options.model,
        options.output,
        options.layout,
        pre_tokenizer=options.pre_tokenizer,
        name=options.name,
        **({"revision": options.revision} if options.revision else {}),
    )
    print(result.text())
