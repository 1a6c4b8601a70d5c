"""`bitdistill export FORMAT MODEL ...`: a packed student in the files of other programs."""

from __future__ import annotations

import importlib


# Format -> what the overview says. The module `export_` and the same name in this package has `run(argv, prog)`.
FORMATS = {
    "gguf": "one file for llama.cpp and what is built on it (Ollama, LM Studio)",
    "i2_s": "one file for bitnet.cpp, microsoft/BitNet's fork of llama.cpp",
    "transformers": "a checkpoint that transformers loads without this package",
}


def run(argv: list[str], prog: str) -> None:
    name = argv[0] if argv else None
    if name in (None, "-h", "--help"):
        width = max(map(len, FORMATS))
        print(f"usage: {prog} FORMAT MODEL ... [OPTIONS]\n\n{__doc__}\n")
        print("\n".join(f"  {name:<{width}}  {summary}" for name, summary in FORMATS.items()))
        print(f"\n{prog} FORMAT --help lists the options of a format.")
        if name is None:
            raise ValueError(f"name a format: {', '.join(FORMATS)}")
        return
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; there are {', '.join(FORMATS)}")
    module = importlib.import_module(f".export_{name}", __package__)
    module.run(argv[1:], f"{prog} {name}")
