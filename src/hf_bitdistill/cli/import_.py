"""`bitdistill import FORMAT SOURCE DIR`: another program's ternary model as a packed student of ours."""

from __future__ import annotations

from .subcommands import run_subcommand


FORMATS = {
    "gguf": "a file of llama.cpp or of the Bonsai runtime, with weights of type TQ1_0, TQ2_0 or Q2_0",
    "transformers": "a BitNet checkpoint of transformers: bitnet-b1.58-2B-4T, Llama3-8B-1.58, Falcon-E, onebitllms",
}


def run(argv: list[str], prog: str) -> None:
    run_subcommand(argv, prog, __doc__, FORMATS, "import_")
