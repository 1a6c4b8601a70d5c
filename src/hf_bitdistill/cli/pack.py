"""`bitdistill pack`: online student -> packed model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..packing import pack
from .arguments import ModelArguments
from .models import check_path, load_model, load_tokenizer
from .runs import check_output_dir


def run(argv: list[str], prog: str) -> None:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", help="folder or Hub id of an online student")
    parser.add_argument("output_dir", type=Path, help="folder for the packed model")
    parser.add_argument("--max_shard_size", default="50GB", help="largest file")
    parser.add_argument(
        "--head", default=None, choices=["causal_lm", "sequence_classification"], help="default: what the student has"
    )
    parser.add_argument(
        "--head_bits",
        type=int,
        default=None,
        choices=[16, 8, 4],
        help="what the stored float embedding and head become when the packed model is loaded on a CPU",
    )
    options = parser.parse_args(argv)
    path = check_path(options.model)
    check_output_dir(options.output_dir, {"the student": path})
    head = options.head or _head_of(path)
    tokenizer = load_tokenizer(path)
    # The classes of a classification head are in the student's own config; no task has to be named.
    model = load_model(ModelArguments(path, dtype="auto"), head)
    before = _parameter_bytes(model)
    packed = pack(model, inplace=True)
    if options.head_bits:
        packed.config.quantization_config.head_bits = options.head_bits
    packed.save_pretrained(options.output_dir, max_shard_size=options.max_shard_size)
    tokenizer.save_pretrained(options.output_dir)
    size = sum(file.stat().st_size for file in options.output_dir.glob("*.safetensors"))
    print(f"{options.output_dir}: {size / 1e6:.1f} MB packed, {before / 1e6:.1f} MB as an online student")


def _head_of(path: str) -> str:
    from transformers import AutoConfig

    architectures = AutoConfig.from_pretrained(path).architectures or []
    classifier = any(name.endswith("ForSequenceClassification") for name in architectures)
    return "sequence_classification" if classifier else "causal_lm"


def _parameter_bytes(model) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
