"""Instructions of the kernels' inner loops, counted in what the compilers make of them.

    python benchmarks/kernel_instructions.py [--output FILE]

Times need the CPU; instructions only need a compiler for it. So this is how the kernels for CPUs that are not at hand are
measured: each is compiled with the options of the build, and in the loop that does the products of most tokens are counted
its instructions, the products among them, and accesses to the stack (sums or codes that found no register). Instructions are
given for 1,024 multiply-adds. Where codes are decoded to memory, once for all tokens of a block, that loop is counted too and
its share added. Compilers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine_code import Instruction, Loop, functions, innermost_loops


ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Compiler:
    """A compiler, the CMake options that choose it, and the instruction sets that it is for."""

    command: str
    options: tuple[str, ...]
    objdump: str
    isas: tuple[str, ...]

    def missing(self) -> list[str]:
        """Of the programs that it takes."""
        return [name for name in (self.command, self.objdump, "cmake") if shutil.which(name) is None]

    def version(self) -> str:
        result = subprocess.run([self.command, "--version"], check=True, capture_output=True, text=True)
        return result.stdout.splitlines()[0]


_X86, _ARM = ("avx512vnni", "amx"), ("neon", "i8mm")
COMPILERS = {
    "g++": Compiler("g++", ("-DCMAKE_CXX_COMPILER=g++",), "objdump", _X86),
    "clang++": Compiler("clang++", ("-DCMAKE_CXX_COMPILER=clang++",), "objdump", _X86),
    "aarch64-linux-gnu-g++": Compiler(
        "aarch64-linux-gnu-g++",
        (f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64-linux-gnu.cmake'}",),
        "aarch64-linux-gnu-objdump",
        _ARM,
    ),
    "clang++ for aarch64": Compiler(
        "clang++",
        ("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu")
        + ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        "aarch64-linux-gnu-objdump",
        _ARM,
    ),
}


@dataclass(frozen=True)
class Kernel:
    """What to look for in the object of one instruction set.

    Attributes:
        source: the file under csrc/kernels.
        product: the instruction that multiplies.
        multiply_adds: of one of these.
        function: a pattern of the function that multiplies the most tokens; its group names the weights.
        decode: likewise of the one that decodes to memory, for `block` tokens. Empty: none does.
        load: the instruction that loads what is multiplied, where it costs as much as a product. Empty: not counted.
    """

    source: str
    product: str
    multiply_adds: int
    function: str
    decode: str = ""
    block: int = 0
    load: str = ""


KERNELS = {
    "avx512vnni": Kernel("avx512_vnni.cpp", "vpdpbusd", 64, r"multiply_many<.*?(\w+)Codes, 2, 10>"),
    "amx": Kernel(
        "amx.cpp", "tdpbsud", 16 * 16 * 64, r"multiply_tiles<2, 2>", r"::decode<.*?(\w+)Codes>", 128, "tileloadd"
    ),
    "neon": Kernel("neon.cpp", "sdot", 16, r"multiply_panel<.*?(\w+)Codes, 4>"),
    "i8mm": Kernel("neon_i8mm.cpp", "smmla", 32, r"multiply_half<4, 8>", r"::decode<.*?(\w+)Codes>", 64),
}


def figures(kernel: Kernel, code: dict[str, list[Instruction]]) -> dict[str, dict[str, float]]:
    """By kind of weights: see the module. A kernel that decodes to memory has one product loop for all of them."""
    result: dict[str, dict[str, float]] = {}
    shared: dict[str, float] = {}
    for name, body in code.items():
        match = re.search(kernel.function, name)
        loops = [loop for loop in innermost_loops(name, body) if loop.count(kernel.product)] if match else []
        if match is None or not loops:
            continue
        loop = max(loops, key=lambda loop: loop.count(kernel.product))
        products = loop.count(kernel.product)
        shared = {
            "instructions": len(loop.instructions),
            "products": products,
            "stack_accesses": loop.stack_accesses(),
            "instructions_per_1024_multiply_adds": round(loop.per_1024(products * kernel.multiply_adds), 2),
        }
        if kernel.load:
            shared["loads"] = loop.count(kernel.load)
        if not kernel.decode:
            result[match[1].lower()] = shared
    for name, body in code.items() if kernel.decode and shared else ():
        match = re.search(kernel.decode, name)
        if match is None:
            continue
        loop = max(innermost_loops(name, body), key=Loop.stored_bytes)
        decoding = loop.per_1024(loop.stored_bytes() * kernel.block)  # a code is a byte
        result[match[1].lower()] = shared | {
            "decoding_stack_accesses": loop.stack_accesses(),
            "decoding_instructions_per_1024_codes": round(decoding * kernel.block, 2),
            "with_decoding_per_1024_multiply_adds": round(shared["instructions_per_1024_multiply_adds"] + decoding, 2),
        }
    return result


def measure(compiler: Compiler, isas: Iterable[str], folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By instruction set and kind of weights. An instruction set that the compiler does not know is left out.

    Args:
        folder: an empty one, for the build.
    """
    options = ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *compiler.options]
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), *options]
    subprocess.run(configure, check=True, capture_output=True, text=True)
    commands = {
        Path(entry["file"]).name: shlex.split(entry["command"])
        for entry in json.loads((folder / "compile_commands.json").read_text())
    }
    result = {}
    for isa in isas:
        kernel, output = KERNELS[isa], folder / f"{isa}.o"
        command = commands[kernel.source]
        command[command.index("-o") + 1] = str(output)
        subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
        if found := figures(kernel, functions(compiler.objdump, output)):
            result[isa] = found
    return result


def main() -> None:
    from hf_bitdistill.machine.environment import processor_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor_name(),
        "runs": [],
    }
    for name, compiler in COMPILERS.items():
        if missing := compiler.missing():
            print(f"{name}: left out, no {', no '.join(missing)}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(compiler, compiler.isas, Path(folder))
        for isa, weights in found.items():
            report["runs"].append({"isa": isa, "compiler": name, "version": compiler.version(), "weights": weights})
            for kind, counts in weights.items():
                print(f"{name}, {isa}, {kind}: " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
