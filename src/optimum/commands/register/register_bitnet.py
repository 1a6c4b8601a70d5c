"""`optimum-cli bitnet ...` and `optimum-cli export bitnet`. Read at every start of optimum-cli: imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from hf_bitdistill_cli import COMMANDS, dispatch


class _BitDistillCommand(BaseOptimumCLICommand):
    """A command of `bitdistill`, with all arguments handed through to it."""

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        # `bitdistill` parses them: nothing is an option here, not even --help.
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        name = self.COMMAND.name
        status = dispatch(name, self.args.arguments, prog=f"optimum-cli bitnet {name}")
        if status:
            sys.exit(status)


class BitNetCommand(BaseOptimumCLICommand):
    """`optimum-cli bitnet`."""

    COMMAND = CommandInfo("bitnet", "Ternary (1.58-bit) students: train, evaluate, benchmark.")
    SUBCOMMANDS = tuple(CommandInfo(name, summary, _BitDistillCommand) for name, summary in COMMANDS.items())


class BitNetExportCommand(BaseOptimumCLICommand):
    """`optimum-cli export bitnet`."""

    COMMAND = CommandInfo("bitnet", "Pack a ternary model for the native CPU decoder.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="Folder or Hub id of a ternary model.")
        parser.add_argument(
            "--task",
            default="auto",
            choices=["auto", "text-generation", "text-classification"],
            help="Default: what the checkpoint is.",
        )
        parser.add_argument("--revision", default=None, help="Branch, tag or commit on the Hub.")
        parser.add_argument("--max_shard_size", default="50GB", help="Largest file.")
        parser.add_argument(
            "--dtype",
            default=None,
            choices=["bfloat16", "float16", "float32"],
            help="Of norms, biases and other floats. Default: that of the full-precision model; of a packed one, as they are.",
        )
        parser.add_argument(
            "--table_bits",
            type=int,
            default=None,
            choices=[32, 16, 8, 4],
            help="Of embedding and head on disk: floats of 32 or 16 bits, integers of 8 or 4. Default: 16; of a packed one, as they are.",
        )
        parser.add_argument(
            "--weight_bits",
            type=float,
            default=None,
            choices=[2, 1.6],
            help="Of a ternary weight on disk: 1.6 stores five in a byte, 2 four. Default: 1.6; of a packed one, as it is.",
        )
        parser.add_argument("output", type=Path, help="Folder to write.")

    def run(self) -> None:
        from hf_bitdistill.cli.main import run_in_first
        from hf_bitdistill.modeling.sizes import bytes_by_kind
        from optimum.bitnet.export import export

        hub = {} if self.args.revision is None else {"revision": self.args.revision}

        def run() -> None:
            args = self.args
            stored = {"dtype": args.dtype, "table_bits": args.table_bits, "weight_bits": args.weight_bits}
            export(args.model, args.output, args.task, args.max_shard_size, **stored, **hub)
            print(f"{args.output}: packed\n\n{bytes_by_kind(args.output).markdown()}")

        status = run_in_first(run, prog="optimum-cli export bitnet")
        if status:
            sys.exit(status)


REGISTER_COMMANDS = [BitNetCommand, (BitNetExportCommand, ExportCommand)]
