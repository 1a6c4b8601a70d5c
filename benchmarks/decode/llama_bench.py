"""Other programs: `llama-bench` of llama.cpp and of what was made of it (ik_llama.cpp, bitnet.cpp)."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Rates:
    """Tokens a second, and what the program tells of itself."""

    prefill: float
    decode: float
    model_bytes: int
    build: str


@dataclass
class LlamaBench:
    """One program, with a file for each shape and its own flags."""

    name: str
    path: Path
    files: dict[str, Path] = field(default_factory=dict)  # by shape; "": for any
    flags: list[str] = field(default_factory=list)

    def file(self, shape: str) -> Path | None:
        return self.files.get(shape) or self.files.get("")

    def run(self, shape: str, prompt: int, new_tokens: int, threads: int) -> Rates:
        """One measurement in a process of its own, which warms up by itself."""
        command = [
            self.path,
            "-m",
            self.file(shape),
            "-p",
            prompt,
            "-n",
            new_tokens,
            "-t",
            threads,
            "-r",
            1,
            "-o",
            "json",
        ]
        result = subprocess.run([*map(str, command), *self.flags], capture_output=True, text=True)
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise SystemExit(f"--llama_bench {self.name}: {self.path} ended with {result.returncode}: {last}")
        try:
            return parse(result.stdout)
        except ValueError as error:
            raise SystemExit(f"--llama_bench {self.name}: {self.path}: {error}") from None


def parse(text: str) -> Rates:
    """The output of `llama-bench -o json`; what other lines it prints before and after is skipped.

    Raises:
        ValueError: there is no such list, or a rate is missing.
    """
    start = next((at for at, line in _line_starts(text) if line.strip().startswith("[")), None)
    if start is None:
        raise ValueError("its output has no JSON list: is it llama-bench, with `-o json`?")
    try:
        entries, _ = json.JSONDecoder().raw_decode(text[start:].lstrip())
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON is damaged: {error}") from None
    rates = {}
    for entry in entries:
        kind = (entry.get("n_prompt", 0) > 0, entry.get("n_gen", 0) > 0)
        rates[kind] = float(entry["avg_ts"])
    missing = [name for name, kind in (("prompt", (True, False)), ("generation", (False, True))) if kind not in rates]
    if missing:
        raise ValueError(f"its JSON has no entry for {' and '.join(missing)}")
    first = entries[0]
    return Rates(rates[True, False], rates[False, True], int(first["model_size"]), str(first.get("build_commit", "")))


def _line_starts(text: str):
    at = 0
    for line in text.splitlines(keepends=True):
        yield at, line
        at += len(line)


# ---- Options ---------------------------------------------------------------------------------------------------------


class _AddProgram(argparse.Action):
    def __call__(self, parser, namespace, value, option_string=None):
        name, equals, path = value.partition("=")
        if not equals:
            name, path = Path(value).parent.name or value, value
        if not Path(path).is_file():
            parser.error(f"{option_string} {value}: there is no file {path}")
        namespace.llama_bench = [*namespace.llama_bench, LlamaBench(name, Path(path))]


class _AddTo(argparse.Action):
    """For the program named last."""

    def __call__(self, parser, namespace, value, option_string=None):
        if not namespace.llama_bench:
            parser.error(f"{option_string} belongs to a --llama_bench, which comes before it")
        program = namespace.llama_bench[-1]
        if option_string == "--llama_bench_flags":
            program.flags += shlex.split(value)
            return
        shape, equals, path = value.partition("=")
        shape, path = (shape, path) if equals else ("", value)
        if not Path(path).is_file():
            parser.error(f"{option_string} {value}: there is no file {path}")
        program.files[shape] = Path(path)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--llama_bench`, and after each its `--gguf` and `--llama_bench_flags`."""
    parser.add_argument(
        "--llama_bench",
        action=_AddProgram,
        default=[],
        metavar="NAME=PATH",
        help="a llama-bench to measure in the same rounds; may be given several times",
    )
    parser.add_argument(
        "--gguf", action=_AddTo, metavar="[SHAPE=]FILE", help="model of the --llama_bench before it, one a shape"
    )
    parser.add_argument(
        "--llama_bench_flags",
        action=_AddTo,
        metavar="FLAGS",
        help='more flags of the --llama_bench before it, after an equals sign: --llama_bench_flags="-fa 1"',
    )
