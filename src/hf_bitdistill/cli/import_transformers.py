"""`bitdistill import transformers MODEL DIR`: a BitNet checkpoint in a format of transformers as a packed student.

MODEL has `quant_method` "bitnet" in its config.json: microsoft/bitnet-b1.58-2B-4T and its bfloat16 master, HF1BitLLM/Llama3-8B-1.58-100B-tokens,
Falcon-E, what onebitllms writes. With --latent, a checkpoint whose config.json says nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.disk_room import check_writable
from ..files.output_folder import check_output_dir
from ..modeling.locate import find_model
from ..modeling.sizes import bytes_by_kind
from .pack import add_storage_options
from .runs import check_no_training, set_card_aside


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output_dir", type=Path, help="folder for the packed model")
    parser.add_argument("--revision", default=None, help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--latent",
        action="store_true",
        help="the weights are a BitNet's latent ones, of which config.json says nothing (Falcon-E's revision prequantized)",
    )
    parser.add_argument("--max_shard_size", default="50GB", help="largest file")
    add_storage_options(parser)
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    hub = {} if options.revision is None else {"revision": options.revision}
    path = find_model(options.model, **hub)
    check_output_dir(options.output_dir, {"model": path})
    check_no_training(options.output_dir)
    check_writable(options.output_dir)
    from ..importing import import_transformers

    stored = {name: getattr(options, name) for name in ("dtype", "table_bits", "weight_bits", "max_shard_size")}
    import_transformers(path, options.output_dir, options.latent, **stored, **hub)
    set_card_aside(options.output_dir)
    print(f"{options.output_dir}: a packed student\n\n{bytes_by_kind(options.output_dir).markdown()}")
