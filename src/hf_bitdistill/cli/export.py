"""`bitdistill export FORMAT MODEL ...`: a packed student in the files of other programs."""

from __future__ import annotations

from .subcommands import run_subcommand


# Format -> what the overview says. The module `export_` and the same name in this package has `run(argv, prog)`.
FORMATS = {
    "gguf": "one file for llama.cpp and what is built on it (Ollama, LM Studio)",
    "i2_s": "one file for bitnet.cpp, microsoft/BitNet's fork of llama.cpp",
    "transformers": "a checkpoint that transformers loads without this package",
}


def run(argv: list[str], prog: str) -> None:
    run_subcommand(argv, prog, __doc__, FORMATS, "export_")
