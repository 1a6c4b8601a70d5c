"""`ops/c_header.py` against `csrc/bitdistill.h`, and against the library that was built from it."""

import ctypes
import re
from pathlib import Path

import pytest

import c_declarations
from hf_bitdistill.ops import binding, c_header


TEXT = (Path(__file__).resolve().parents[2] / "csrc" / "bitdistill.h").read_text()

NUMBERS = {
    "int": ctypes.c_int,
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
OPAQUE = {"void", "bd_decoder", "bd_cache"}  # whose pointers are plain addresses
FUNCTION_POINTERS = {"bd_team"}


def mirrors(declared: str) -> list[type | None]:
    """The types in Python that a type in C may be written as."""
    declared = re.sub(r"\s*\bconst\b\s*", "", declared)
    if array := re.fullmatch(r"(\w+)\[(\d+)\]", declared):
        return [each * int(array[2]) for each in mirrors(array[1])]
    if declared == "void":
        return [None]
    if declared in FUNCTION_POINTERS:
        return [ctypes.c_void_p]
    if declared == "char*":
        return [ctypes.c_char_p]
    if declared.endswith("*"):
        target = declared[:-1]
        if target in OPAQUE:
            return [ctypes.c_void_p]
        # A matrix is passed by its address, a result comes back through a typed pointer.
        address = [ctypes.c_void_p] if target in NUMBERS else []
        return address + [ctypes.POINTER(each) for each in mirrors(target)]
    return [NUMBERS.get(declared) or c_header.STRUCTURES[declared]]


def differences(text: str) -> list[str]:
    """What a header says and `c_header.py` does not, or the other way round."""
    header = c_declarations.read(text)
    found = []
    for name in sorted(set(header.structures) ^ set(c_header.STRUCTURES)):
        found.append(f"{name}: on one side alone")
    for name in sorted(set(header.functions) ^ set(c_header.SIGNATURES)):
        found.append(f"{name}(): on one side alone")
    if list(header.structures) != list(c_header.STRUCTURES):
        found.append("the structures come in another order")
    for name in set(header.structures) & set(c_header.STRUCTURES):
        fields, here = header.structures[name], c_header.STRUCTURES[name]._fields_
        if [field for field, _ in fields] != [field for field, *_ in here]:
            found.append(f"{name}: other fields, or another order of them")
            continue
        found += [
            f"{name}.{field}: {there} is not {kind}"
            for (field, there), (_, kind) in zip(fields, here, strict=True)
            if kind not in mirrors(there)
        ]
    for name in set(header.functions) & set(c_header.SIGNATURES):
        (result, arguments), (here, kinds) = header.functions[name], c_header.SIGNATURES[name]
        if here not in mirrors(result):
            found.append(f"{name}(): returns {result}")
        if len(arguments) != len(kinds):
            found.append(f"{name}(): {len(arguments)} arguments, not {len(kinds)}")
            continue
        found += [
            f"{name}(): argument {number} is {there}, not {kind}"
            for number, (there, kind) in enumerate(zip(arguments, kinds, strict=True), start=1)
            if kind not in mirrors(there)
        ]
    for name, value in vars(c_header).items():
        if isinstance(value, int) and header.constants.get(f"BD_{name}") != value:
            found.append(f"BD_{name}: {header.constants.get(f'BD_{name}')}, not {value}")
    return found


def test_python_declares_what_the_header_declares():
    assert differences(TEXT) == []
    # All of it was read.
    header = c_declarations.read(TEXT)
    assert len(header.functions) == len(re.findall(r"^BD_API", TEXT, flags=re.MULTILINE))
    assert len(header.structures) == len(re.findall(r"^typedef struct \w+ \{", TEXT, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("int64_t window;", "int32_t window;", "bd_layer.window: int32_t is not"),
        ("bd_projection qkv[3];", "bd_projection qkv[4];", "bd_layer.qkv: bd_projection[4] is not"),
        ("bd_projection o, down;", "bd_projection down, o;", "bd_layer: other fields"),
        ("const bd_rope* ropes;", "const bd_layer* ropes;", "bd_decoder_config.ropes: const bd_layer* is not"),
        ("  float eps;\n", "  float eps;\n  int32_t kind;\n", "bd_norm: other fields"),
        ("typedef struct bd_rope {", "typedef struct bd_turn {", "bd_turn: on one side alone"),
        ("int64_t length);", "int32_t length);", "bd_cache_truncate(): argument 3 is int32_t"),
        ("int repeats, double* multiply", "double* multiply", "bd_measure_multiply_add(): 1 arguments, not 2"),
        ("BD_API void bd_cache_destroy", "BD_API int bd_cache_destroy", "bd_cache_destroy(): returns int"),
        ("BD_API int bd_get_num_threads(void);", "", "bd_get_num_threads(): on one side alone"),
        ("#define BD_ABI_VERSION ", "#define BD_ABI_VERSION 1", "BD_ABI_VERSION: 1"),
        ("BD_TABLE_SPLIT = 4", "BD_TABLE_SPLIT = 5", "BD_TABLE_SPLIT: 5, not 4"),
    ],
)
def test_a_change_of_one_side_is_seen(old, new, difference):
    changed = TEXT.replace(old, new, 1)
    if old.startswith("typedef struct"):
        changed = changed.replace("} bd_rope;", "} bd_turn;")
    assert changed != TEXT
    assert any(each.startswith(difference) for each in differences(changed)), differences(changed)


def test_the_library_says_how_it_was_laid_out(library):
    found = c_header.read_layout(library._library)
    assert found == list(c_header.expected_layout())
    assert len(found) == sum(1 + len(each._fields_) for each in c_header.STRUCTURES.values())


class _OtherNorm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("count", ctypes.c_size_t), ("eps", ctypes.c_double)]


class _LongerNorm(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("eps", ctypes.c_float),
        ("kind", ctypes.c_int32),
    ]


class _LastAdapter(ctypes.Structure):
    _fields_ = [("alpha", ctypes.c_float)]


@pytest.mark.parametrize(
    ("name", "structure", "difference"),
    [
        (
            "bd_norm",
            _OtherNorm,
            r"bd_norm\.eps has 4 bytes at offset 16 in the library, but bd_norm\.eps has 8 bytes at",
        ),
        ("bd_norm", _LongerNorm, r"bd_table has 24 bytes in the library, but bd_norm\.kind has 4 bytes at offset 20"),
        ("bd_last", _LastAdapter, r"bd_last has 4 bytes in this package alone"),
    ],
)
def test_a_library_of_another_layout_is_refused(library, monkeypatch, name, structure, difference):
    monkeypatch.setitem(c_header.STRUCTURES, name, structure)
    with pytest.raises(binding.NativeLibraryError, match=difference) as refusal:
        binding.NativeLibrary(library.path)
    assert str(library.path) in str(refusal.value) and "pip install" in str(refusal.value)


def test_rows_that_only_the_library_has_are_refused():
    rows = list(c_header.expected_layout())
    with pytest.raises(ValueError, match="bd_more has 8 bytes in the library alone"):
        c_header.check_layout([*rows, c_header.Place("bd_more", "", 0, 8)])


def test_another_version_or_a_missing_function_is_refused(library, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(binding, "ABI_VERSION", c_header.ABI_VERSION + 1)
        with pytest.raises(binding.NativeLibraryError, match=r"has ABI version \d+, this package needs \d+; install"):
            binding.NativeLibrary(library.path)
    monkeypatch.setitem(c_header.SIGNATURES, "bd_more", (ctypes.c_int, []))
    with pytest.raises(binding.NativeLibraryError, match="has no function bd_more; install"):
        binding.NativeLibrary(library.path)
