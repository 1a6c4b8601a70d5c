"""`bitdistill benchmark`: decode and prefill speed, time to first token, load time, file size and peak memory of a
ternary model on this CPU, against its full-precision model and llama.cpp. Each system runs in a process of its own."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a ternary model")
    parser.add_argument("--baseline", help="folder or Hub id of a full-precision model to compare with")
    parser.add_argument("--baseline_dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--gguf", type=Path, help="GGUF file to compare with, in llama.cpp (needs llama-cpp-python)")
    parser.add_argument("--prompt_tokens", type=int, default=128, help="length of the prompt (default: 128)")
    parser.add_argument("--new_tokens", type=int, default=32, help="length of the continuation (default: 32)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the best counts (default: 3)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--head_bits", type=int, default=16, choices=[32, 16, 8, 4], help="embedding and output head")
    parser.add_argument("--kv_bits", type=int, default=16, choices=[32, 16, 8], help="keys and values (default: 16)")
    parser.add_argument("--output_file", type=Path, help="also write the result here, as JSON")
    parser.add_argument("--plot", type=Path, help="also draw it, as PNG")
    return parser


def run(argv: list[str], prog: str) -> None:
    from ..evaluation.speed import System, format_table, measure, save_plot
    from ..files.atomic import write_text
    from ..files.disk_room import check_writable
    from ..machine.environment import describe_environment
    from ..modeling.locate import find_model

    options = make_parser(prog).parse_args(argv)
    for name in ("prompt_tokens", "new_tokens", "repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")
    if options.gguf is not None and not options.gguf.is_file():
        raise FileNotFoundError(f"there is no GGUF file {options.gguf}")

    for file in filter(None, (options.output_file, options.plot)):
        check_writable(file, is_file=True)
    common = {name: getattr(options, name) for name in ("prompt_tokens", "new_tokens", "repeats", "threads")}
    systems = [
        System("native", find_model(options.model), head_bits=options.head_bits, kv_bits=options.kv_bits, **common)
    ]
    if options.baseline is not None:
        systems.append(System("transformers", find_model(options.baseline), dtype=options.baseline_dtype, **common))
    if options.gguf is not None:
        systems.append(System("llama.cpp", str(options.gguf), **common))
    measurements = [measure(system) for system in systems]
    print(format_table(measurements), flush=True)
    if options.output_file is not None:
        result = {"environment": describe_environment(), "measurements": [asdict(m) for m in measurements]}
        write_text(options.output_file, json.dumps(result, indent=2) + "\n")
    if options.plot is not None:
        save_plot(measurements, options.plot)
