"""Instructions of the kernels' inner loops, counted in what the compilers make of them.

    python benchmarks/kernel_instructions.py [--compilers g++ clang++ aarch64-linux-gnu-g++] [--output FILE]

Times need the CPU; instructions only need a compiler for it. So this is how the kernels for CPUs that are not at hand are
measured: every product of many tokens is compiled with the options of the build, and in the loop that does the products are
counted its instructions, the products themselves, and accesses to the stack (sums or codes that did not fit into the
registers). Instructions are given for 1,024 multiply-adds. Where codes are decoded to memory once for a block of tokens, that
loop is counted too and its share added. Compilers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hf_bitdistill.environment import processor_name


ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-ffp-contract=off"]
FLAGS += ["-fno-math-errno", f"-I{ROOT / 'csrc'}"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512"]


@dataclass(frozen=True)
class Kernel:
    """A source file and what it is compiled and looked at with.

    Attributes:
        options: as in CMakeLists.txt.
        product: a pattern of the instruction that multiplies.
        multiply_adds: of one of them.
        function: a pattern of the functions that do the products of the most tokens; a group in it names the weights.
        decode: likewise for the loop that decodes a panel, 256 codes a turn, for `block` tokens. Empty: none.
    """

    source: str
    options: tuple[str, ...]
    product: str
    multiply_adds: int
    function: str
    decode: str = ""
    block: int = 0


X86 = {
    "avx512vnni": Kernel("avx512_vnni.cpp", (*AVX512,), "vpdpbusd", 64, r"multiply_many<.*?(\w+)Codes, 2, 10>"),
    "amx": Kernel(
        "amx.cpp",
        (*AVX512, "-mamx-tile", "-mamx-int8"),
        "tdpbsud",
        16 * 16 * 64,
        r"multiply_strips<.*?(\w+)Codes>",
    ),
}
ARM = {
    "neon": Kernel(
        "neon.cpp", ("-march=armv8.2-a+dotprod",), "sdot", 16, r"multiply_panel<.*?(\w+)Codes, 4>"
    ),
    "i8mm": Kernel(
        "neon_i8mm.cpp",
        ("-march=armv8.2-a+dotprod+i8mm",),
        "smmla",
        32,
        r"multiply_half<4, 8>()",
        r"multiply_strips<.*?(\w+)Codes>",
        64,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions, as mnemonic and operands."""

    instructions: tuple[tuple[str, str], ...]

    def count(self, mnemonic: str) -> int:
        return sum(re.fullmatch(mnemonic, name) is not None for name, _ in self.instructions)

    def stack_accesses(self) -> int:
        """Loads and stores of what lives on the stack."""
        return sum(re.search(r"\[sp|\(%rsp|-0x\w+\(%rbp", operands) is not None for _, operands in self.instructions)


def compiled(compiler: str, kernel: Kernel, folder: Path) -> Path:
    """The object file of a kernel."""
    output = folder / f"{kernel.source}.o"
    source = ROOT / "csrc" / "kernels" / kernel.source
    subprocess.run([compiler, *FLAGS, *kernel.options, "-c", str(source), "-o", str(output)], check=True)
    return output


def functions(objdump: str, file: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Address, mnemonic and operands of the instructions of every function."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(file)]
    found: dict[str, list[tuple[int, str, str]]] = {}
    lines: list[tuple[int, str, str]] = []
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if start := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            lines = found.setdefault(start[1], [])
        elif instruction := re.match(r"\s*([0-9a-f]+):\s+(?:\{\w+\} )?(\S+)\s*(.*)", line):
            lines.append((int(instruction[1], 16), instruction[2], instruction[3]))
    return found


def innermost_loops(lines: list[tuple[int, str, str]]) -> list[Loop]:
    """From the target of a jump backwards to the jump, where no other such range lies inside."""
    jumps = []
    for address, name, operands in lines:
        target = re.search(r"(?:^|, )([0-9a-f]+) <", operands)
        if target and re.match(r"j|b(\.|$)|cbn?z|tbn?z", name) and lines[0][0] <= int(target[1], 16) <= address:
            jumps.append((int(target[1], 16), address))
    inner = [a for a in jumps if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in jumps)]
    return [Loop(tuple((name, rest) for at, name, rest in lines if first <= at <= last)) for first, last in inner]


def product_loop(lines: list[tuple[int, str, str]], product: str) -> Loop | None:
    """The innermost loop with the most products."""
    loops = [loop for loop in innermost_loops(lines) if loop.count(product)]
    return max(loops, key=lambda loop: loop.count(product), default=None)


def figures(compiler: str, objdump: str, kernel: Kernel, folder: Path) -> dict[str, dict[str, float]]:
    """Of every kind of weights: see the module."""
    code = functions(objdump, compiled(compiler, kernel, folder))
    result = {}
    for name, lines in code.items():
        match = re.search(kernel.function, name)
        loop = product_loop(lines, kernel.product) if match else None
        if match is None or loop is None:
            continue
        done = loop.count(kernel.product) * kernel.multiply_adds
        counts = {
            "instructions": len(loop.instructions),
            "products": loop.count(kernel.product),
            "stack_accesses": loop.stack_accesses(),
            "instructions_per_1024_multiply_adds": round(len(loop.instructions) * 1024 / done, 2),
        }
        if not kernel.decode:
            result[match[1].lower()] = counts
            continue
        for other, of_other in code.items():
            weights = re.search(kernel.decode, other)
            decoding = max(innermost_loops(of_other), key=lambda x: x.count("zip[12]"), default=None) if weights else None
            if weights is None or decoding is None:
                continue
            share = len(decoding.instructions) * 1024 / (256 * kernel.block)
            result[weights[1].lower()] = counts | {
                "decoding_instructions": len(decoding.instructions),
                "decoding_stack_accesses": decoding.stack_accesses(),
                "with_decoding_per_1024_multiply_adds": round(len(loop.instructions) * 1024 / done + share, 2),
            }
    return result


def version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compilers", nargs="+", default=["g++", "clang++", "aarch64-linux-gnu-g++"])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor_name(),
        "runs": [],
    }
    for compiler in args.compilers:
        if shutil.which(compiler) is None:
            continue
        arm = "aarch64" in compiler
        objdump = "aarch64-linux-gnu-objdump" if arm else "objdump"
        for isa, kernel in (ARM if arm else X86).items():
            with tempfile.TemporaryDirectory() as folder:
                weights = figures(compiler, objdump, kernel, Path(folder))
            report["runs"].append({"isa": isa, "compiler": version(compiler), "weights": weights})
            print(isa, compiler, json.dumps(weights, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
