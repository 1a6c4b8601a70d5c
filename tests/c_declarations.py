"""What a C header of the plain kind that `csrc/bitdistill.h` is declares: constants, structures, functions."""

import re
from dataclasses import dataclass, field


@dataclass
class Header:
    """Declarations by their names, in order.

    Attributes:
        constants: of enumerations, and macros that are a number.
        structures: `(field, C type)` pairs; an array's type ends with its length, `bd_projection[3]`.
        functions: the type of the result, and those of the arguments.
    """

    constants: dict[str, int] = field(default_factory=dict)
    structures: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    functions: dict[str, tuple[str, list[str]]] = field(default_factory=dict)


def read(text: str) -> Header:
    """Parse a header: `//` comments, `typedef struct` and `typedef enum` with a name of their own, functions behind `BD_API`."""
    header = Header()
    text = re.sub(r"//[^\n]*", "", text)
    for name, value in re.findall(r"^#define (\w+) (\d+)\s*$", text, flags=re.MULTILINE):
        header.constants[name] = int(value)
    for body in re.findall(r"typedef enum \w+ \{(.*?)\}", text, flags=re.DOTALL):
        header.constants |= {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", body)}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, flags=re.DOTALL):
        declarations = filter(None, (each.strip() for each in body.split(";")))
        header.structures[name] = [pair for each in declarations for pair in _fields(each)]
    for result, name, arguments in re.findall(r"BD_API ([\w\s*]+?)(\w+)\(([^;]*)\);", text):
        given = [_type(each.rsplit(maxsplit=1)[0]) for each in arguments.split(",")] if arguments != "void" else []
        header.functions[name] = (_type(result), given)
    return header


def _fields(declaration: str) -> list[tuple[str, str]]:
    """Of `const bd_norm *a, b[2]`; a star belongs to the type."""
    first, *others = declaration.split(",")
    of_all, name = first.rsplit(maxsplit=1)
    pairs = []
    for each in (name, *others):
        found = re.fullmatch(r"(\w+)(\[\d+\])?", each.strip())
        assert found, f"a declaration that is not understood: {declaration!r}"
        pairs.append((found[1], _type(of_all) + (found[2] or "")))
    return pairs


def _type(text: str) -> str:
    return re.sub(r"\s*\*\s*", "*", " ".join(text.split()))
