"""Functions and loops of an object file, as objdump shows them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """Address, mnemonic and operands as the disassembler writes them, without names of places: of x86-64 in AT&T order, the destination
    last."""

    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a jump goes to."""
        if not re.match(r"j|b(\.|$)|cbn?z|tbn?z", self.name):
            return None
        found = re.search(r"(?:^|, )(?:0x)?([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def is_vector_store(self) -> bool:
        """Of x86-64."""
        return self.name.startswith("v") and "mm" in self.operands and self.operands.endswith(")")

    def stored_bytes(self) -> int:
        """Of vector registers, to memory."""
        if re.fullmatch(r"vmov\w+", self.name):
            return 64 if re.match(r"%zmm\d+,.*\(", self.operands) else 0
        if re.fullmatch(r"st(p|r|ur)", self.name):
            return 16 * len(re.findall(r"\bq\d+", self.operands))
        registers = re.findall(r"\bv\d+\.(\w+)", self.operands) if re.fullmatch(r"st[1-4]", self.name) else []
        return sum(16 if shape in ("16b", "8h", "4s", "2d") else 8 for shape in registers)

    def uses_stack(self) -> bool:
        return re.search(r"\[sp\b|\(%rsp|-0x\w+\(%rbp", self.operands) is not None


@dataclass(frozen=True)
class Loop:
    """What a jump backwards spans, in one function."""

    function: str
    instructions: tuple[Instruction, ...]

    def count(self, *names: str) -> int:
        return sum(each.name in names for each in self.instructions)

    def named(self, *starts: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name.startswith(starts)]

    @property
    def vector_stores(self) -> list[Instruction]:
        return [each for each in self.instructions if each.is_vector_store]

    def stored_bytes(self) -> int:
        return sum(each.stored_bytes() for each in self.instructions)

    def stack_accesses(self) -> int:
        return sum(each.uses_stack() for each in self.instructions)

    def per_1024(self, multiply_adds: int) -> float:
        """Instructions, where one turn stands for so many multiply-adds."""
        return len(self.instructions) * 1024 / multiply_adds

    def contains(self, other: Loop) -> bool:
        first, last = self.instructions[0].address, self.instructions[-1].address
        inside = first <= other.instructions[0].address and other.instructions[-1].address <= last
        return inside and len(other.instructions) < len(self.instructions)


def functions(objdump: str, file: Path) -> dict[str, list[Instruction]]:
    """The code of every function of an object file, by its name in C++."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(file)]
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if start := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            code = found.setdefault(start[1], [])
        elif parts := re.match(r"\s*([0-9a-f]+):\s+(?:\{\w+\}\s+)?(\S+)\s*(.*)", line):
            code.append(Instruction(int(parts[1], 16), parts[2], parts[3].split(" <")[0].strip()))
    return found


def innermost_loops(function: str, code: Sequence[Instruction], having: Sequence[str] = ()) -> list[Loop]:
    """Loops in which no other one lies.

    Args:
        having: names of instructions; loops with none of these do not count.
    """
    loops = []
    for jump in code:
        if jump.target is not None and code[0].address <= jump.target <= jump.address:
            span = tuple(each for each in code if jump.target <= each.address <= jump.address)
            loops.append(Loop(function, span))
    if having:
        loops = [loop for loop in loops if loop.count(*having)]
    return [loop for loop in loops if not any(loop.contains(other) for other in loops)]
