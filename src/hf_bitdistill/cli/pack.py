"""`bitdistill pack`: online student -> packed model."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from ..config import FILE_WEIGHT_BITS, FLOAT_DTYPES, WEIGHT_BITS
from ..data.tokenizers import load_tokenizer
from ..evaluation.score_record import carry_record
from ..files.disk_room import check_room, check_writable, parameter_bytes, size_text
from ..files.model_folder import replace_model
from ..files.output_folder import check_output_dir
from ..hub.cards import CARD, write_card
from ..hub.cards.folder_facts import folder_facts
from ..modeling.locate import find_model
from ..modeling.model_heads import HEADS, head_of
from ..modeling.pack import TABLE_BITS, pack
from ..modeling.sizes import bytes_by_kind
from ..nn import BitLinear
from ..runtime import make_native_file
from ..runtime.native_key import check_enabled
from ..verify import save_packed
from .arguments import ModelArguments
from .models import load_model
from .runs import check_no_training, set_card_aside


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", help="folder or Hub id of an online student")
    parser.add_argument("output_dir", type=Path, help="folder for the packed model")
    parser.add_argument("--max_shard_size", default="50GB", help="largest file")
    parser.add_argument("--head", default=None, choices=list(HEADS), help="default: what the student has")
    parser.add_argument(
        "--head_bits",
        type=int,
        default=None,
        choices=[16, 8, 4],
        help="what stored embedding and head become when the packed model is loaded on a CPU, where they have more bits",
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="write the file that the native decoder loads from at once, too; otherwise the first load writes it, of models of 64 MB and more",
    )
    add_storage_options(parser)
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    if options.native:
        check_enabled()
    path = find_model(options.model)
    check_output_dir(options.output_dir, {"student": path})
    check_no_training(options.output_dir)
    check_writable(options.output_dir)
    head = options.head or head_of(AutoConfig.from_pretrained(path))
    tokenizer = load_tokenizer(path)
    # The classes of a classification head are in the student's own config; no task has to be named.
    model = load_model(ModelArguments(path, dtype="auto"), head)
    before = parameter_bytes(model)
    needed = {"the packed model": _packed_bytes(model, options.weight_bits)}
    if options.native:
        needed["its native file"] = _packed_bytes(model, 2)  # (as it is in memory)
    check_room(options.output_dir, needed)
    packed = pack(
        model, inplace=True, dtype=options.dtype, table_bits=options.table_bits, weight_bits=options.weight_bits
    )
    if options.head_bits:
        packed.config.quantization_config.head_bits = options.head_bits
    set_card_aside(options.output_dir)
    with replace_model(options.output_dir) as folder:
        save_packed(packed, folder, tokenizer, max_shard_size=options.max_shard_size)
        # Packed it computes what the student computes: what was measured of that holds.
        carry_record(path, folder)
    _write_card(options.output_dir, path)
    sizes = bytes_by_kind(options.output_dir)
    print(f"{options.output_dir}: {sizes.total / 1e6:.1f} MB packed, {before / 1e6:.1f} MB as an online student\n")
    print(sizes.markdown())
    if options.native:
        del model, packed
        file = make_native_file(options.output_dir)
        size = size_text(file.stat().st_size)
        print(f"\n{file}: {size}, from which it loads on this machine; it may be deleted at any time")


def _write_card(folder: Path, student: str) -> None:
    """The packed student's card, with what that of the student says of its base model, licence, language, ...; not in the place of one that
    a person wrote."""
    if (folder / CARD).is_file():
        return
    name, beside = folder.resolve().name, [Path(student)] if Path(student).is_dir() else []
    try:
        write_card(folder, folder_facts(folder, name, name, beside, student))
    except ValueError as error:
        print(f"{folder} has no card: {error}")


def add_storage_options(
    parser: argparse.ArgumentParser,
    default: str | None = None,
    default_text: str = "that of the full-precision model, bfloat16 where it is not known",
) -> None:
    """`--dtype`, `--table_bits` and `--weight_bits`, as [`pack`] has them.

    Args:
        default: of `--dtype`.
        default_text: what the help says of it.
    """
    parser.add_argument(
        "--dtype",
        default=default,
        choices=list(FLOAT_DTYPES),
        help=f"of norms, biases and other floats; default: {default_text}",
    )
    parser.add_argument(
        "--table_bits",
        type=int,
        default=16,
        choices=list(TABLE_BITS),
        help="of embedding and head on disk: floats of 16 bits (default) or 32, or integers of 8 or 4 bits",
    )
    parser.add_argument(
        "--weight_bits",
        type=_weight_bits,
        default=FILE_WEIGHT_BITS,
        choices=list(WEIGHT_BITS),
        help="of a ternary weight on disk: 1.6 (default), five in a byte, ten times smaller than in 16 bits; or 2, four in a byte, which older "
        "versions read too. The same model when it is loaded",
    )


def _weight_bits(text: str) -> float:
    return next((bits for bits in WEIGHT_BITS if float(text) == bits), float(text))


def _packed_bytes(model: PreTrainedModel, weight_bits: float) -> int:
    """About the size of the student when it is packed."""
    latent = [module.weight for module in model.modules() if isinstance(module, BitLinear)]
    return (
        parameter_bytes(model)
        - sum(w.numel() * w.element_size() for w in latent)
        + math.ceil(sum(w.numel() for w in latent) * weight_bits / 8)
    )
