"""`bitdistill export transformers`: a student as a checkpoint that transformers loads without hf-bitdistill."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import FLOAT_DTYPES


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a student, packed or in training")
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="the effective weights in ordinary linear layers: no quantisation, activations not rounded, logits a little different",
    )
    parser.add_argument(
        "--linear_class",
        default="autobitlinear",
        choices=["autobitlinear", "bitlinear"],
        help="autobitlinear (default): matrices with one scale are written with 2 bits a weight, and unpacked once, while loading; those with a "
        "scale a row (as bitdistill run makes them) or group are written as floats. bitlinear: one scale a matrix only, 2 bits a weight in memory "
        "too, unpacked at every call",
    )
    parser.add_argument(
        "--dtype",
        choices=list(FLOAT_DTYPES),
        help="of what is not ternary; default: as it is stored; bfloat16 for all of a dense one",
    )
    parser.add_argument("--max_shard_size", default="50GB", help="largest file")
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    from ..export import export_transformers
    from ..files.output_folder import check_output_dir
    from ..modeling.locate import find_model
    from .runs import check_no_training, set_card_aside

    hub = {"revision": options.revision} if options.revision else {}
    path = find_model(options.model, **hub)
    check_output_dir(options.output_dir, {"student": path})
    check_no_training(options.output_dir)
    set_card_aside(options.output_dir)
    config = export_transformers(
        path,
        options.output_dir,
        dense=options.dense,
        linear_class=options.linear_class,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        **hub,
    )
    size = sum(file.stat().st_size for file in options.output_dir.glob("*.safetensors")) / 1e6
    print(f"{options.output_dir}: {(config.architectures or ['?'])[0]}, {size:.1f} MB; transformers alone loads it")
    if options.dense:
        print("Activations are not rounded to 8 bits in it: where the student rounds them, logits differ a little.")
