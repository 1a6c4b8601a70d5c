"""Loops of an x86-64 object file, as objdump shows them."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


PRODUCTS = ("vpmaddubsw", "vpdpbusd")


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str  # in AT&T order: the destination is the last

    @property
    def is_vector_store(self) -> bool:
        return self.name.startswith("v") and "mm" in self.operands and self.operands.endswith(")")

    @property
    def target(self) -> int | None:
        """Where a jump goes to."""
        found = re.match(r"(?:0x)?([0-9a-f]+)\b", self.operands) if self.name.startswith("j") else None
        return int(found[1], 16) if found else None


@dataclass(frozen=True)
class Loop:
    function: str
    instructions: tuple[Instruction, ...]

    @property
    def products(self) -> int:
        return sum(each.name in PRODUCTS for each in self.instructions)

    def named(self, *starts: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name.startswith(starts)]

    @property
    def vector_stores(self) -> list[Instruction]:
        return [each for each in self.instructions if each.is_vector_store]

    def __contains__(self, other: "Loop") -> bool:
        first, last = self.instructions[0].address, self.instructions[-1].address
        inside = first <= other.instructions[0].address and other.instructions[-1].address <= last
        return inside and len(other.instructions) < len(self.instructions)


def disassembler() -> str | None:
    return shutil.which("objdump") or shutil.which("llvm-objdump")


def functions(file: Path) -> dict[str, list[Instruction]]:
    command = [disassembler(), "-d", "-C", "--no-show-raw-insn", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result, current = {}, []
    for line in text.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            current = result.setdefault(start[1], [])
        elif found := re.match(r"\s*([0-9a-f]+):\s+(?:\{\w+\}\s+)?(\S+)\s*(.*)$", line):
            current.append(Instruction(int(found[1], 16), found[2], found[3].split(" <")[0].strip()))
    return result


def product_loops(file: Path) -> list[Loop]:
    """The innermost loops with 8-bit products. A loop is what a jump backwards spans."""
    result = []
    for name, body in functions(file).items():
        loops = []
        for jump in body:
            if jump.target is not None and body[0].address <= jump.target <= jump.address:
                span = tuple(each for each in body if jump.target <= each.address <= jump.address)
                loops.append(Loop(name, span))
        loops = [each for each in loops if each.products]
        result += [each for each in loops if not any(other in each for other in loops)]
    return result
