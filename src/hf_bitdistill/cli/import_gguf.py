"""`bitdistill import gguf FILE DIR`: a ternary model in a GGUF file as a packed student.

Architectures: llama, qwen2, qwen3, bitnet. Codes and scales are taken over exactly; linear layers of other types stay in full precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data.tokenizers import load_tokenizer
from ..files.disk_room import check_writable
from ..files.model_folder import check_output
from ..files.output_folder import check_output_dir
from ..modeling.sizes import bytes_by_kind
from .pack import add_storage_options
from .runs import check_no_training, set_card_aside


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("output_dir", type=Path, help="folder for the packed model")
    parser.add_argument(
        "--float_activations",
        action="store_true",
        help="do not round activations to 8 bits, as weight-only models expect; torch computes then, slowly. (A file of the architecture "
        "bitnet was made for rounded ones.)",
    )
    parser.add_argument(
        "--tokenizer", default=None, metavar="MODEL", help="folder or Hub id, in place of the file's tokenizer"
    )
    parser.add_argument("--max_shard_size", default="50GB", help="largest file")
    add_storage_options(parser, "float32", "float32, which holds all that a GGUF file does")
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    if not options.file.is_file():
        raise FileNotFoundError(f"there is no file {options.file}")
    check_output_dir(options.output_dir, {})
    check_output(options.output_dir, tokenizer=options.tokenizer)
    check_no_training(options.output_dir)
    check_writable(options.output_dir)
    from ..importing import import_gguf

    found = import_gguf(
        options.file,
        options.output_dir,
        activation_bits=None if options.float_activations else 8,
        dtype=options.dtype,
        table_bits=options.table_bits,
        weight_bits=options.weight_bits,
        max_shard_size=options.max_shard_size,
        tokenizer=load_tokenizer(options.tokenizer) if options.tokenizer else None,
    )
    set_card_aside(options.output_dir)
    _tell(options.output_dir, found)


def _tell(folder: Path, found) -> None:
    quantization = found.quantization
    scales = f"{quantization.weight_granularity}"
    if quantization.scale_group_size:
        scales = f"group of {quantization.scale_group_size} columns"
    print(
        f"{folder}: a packed student, one scale a {scales}, sub_norm={quantization.sub_norm!r}, activation_bits={quantization.activation_bits}\n"
    )
    if found.kept:
        print("Linear layers that are not ternary in the file, kept in full precision:")
        print("\n".join(f"  {name} ({kind})" for name, kind in found.kept.items()) + "\n")
    if found.tokenizer_error:
        print(f"No tokenizer was written: {found.tokenizer_error}. Give one with --tokenizer.\n")
    if found.cost is not None:
        print(
            f"This model was made for activations in floats. Rounding them to 8 bits {found.cost} (on the prompts of bitdistill verify); "
            "--float_activations does without, slowly.\n"
        )
    print(bytes_by_kind(folder).markdown())
