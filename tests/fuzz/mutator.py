"""Damages a checkpoint: a pure function of a seed and of the files' contents, so that every mutant can be made again."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path


FIFO, FOLDER, LINK_OUT = "a FIFO", "a folder", "a link out of the folder"
CONFIG, INDEX, GENERATION = "config.json", "model.safetensors.index.json", "generation_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

Files = dict[str, "bytes | str | None"]

# What no key of a config is; numbers small enough that transformers' own config classes, which come first, survive them.
_VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    7,
    48,
    1000,
    10**6,
    -(10**9),
    0.5,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
] + ["", "x", "gelu", "1e-6", "\u0000", "x" * 300, [], [1], ["x"], [[]], {}, {"a": 1}, {"x": "input"}, "../x"]
# Keys of other architectures, and of transformers.
_FOREIGN = [
    "n_layer",
    "num_layers",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "norm_topk_prob",
    "no_rope_layers",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "rope_scaling",
    "text_config",
    "sub_configs",
    "is_decoder",
    "dtype",
    "torch_dtype",
    "auto_map",
    "transformers_weights",
    "attn_implementation",
    "use_bidirectional_attention",
    "head_dim",
    "pretraining_tp",
    "bos_token_id",
    "problem_type",
]
_QUANTIZATION = [
    "quantization_mode",
    "sub_norm",
    "sub_norm_eps",
    "weight_granularity",
    "group_size",
    "activation_bits",
    "modules_to_not_convert",
    "modules_without_sub_norm",
    "projections",
    "head_bits",
    "table_bits",
    "weight_bits",
    "source_dtype",
    "quant_method",
    "bits",
    "self",
    "kwargs",
]
_DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F7", "", 5]


@dataclass
class Mutant:
    """A damaged checkpoint.

    Attributes:
        files: name -> content, one of the markers above, or `None` for a file that is gone.
        target: the file that was damaged.
        kind: what kind of damage.
        key: of the config or the tensor.
        what: one line for a report.
    """

    files: Files
    target: str
    kind: str
    key: str = ""
    what: str = ""
    notes: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def write_folder(files: Files, folder: Path) -> None:
    """Write a mutant into an empty folder; links lead to `folder.parent / "outside"`."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        if content is None:
            continue
        if content == FIFO:
            os.mkfifo(path)
        elif content == FOLDER:
            path.mkdir()
        elif content == LINK_OUT:
            path.symlink_to(folder.parent / "outside" / name)
        else:
            path.write_bytes(content)


def mutate(files: Files, seed: int) -> Mutant:
    """One mutant of a checkpoint. The same seed and files give the same mutant."""
    rng = random.Random(seed)
    mutant = Mutant(dict(files), "", "")
    kinds = [_config] * 6 + [_quantization] * 4 + [_header] * 5 + [_content] * 3 + [_bytes] * 3 + [_place] * 2
    kinds += [_index] * 4 if INDEX in files else []
    kinds += [_tokenizer] * 2 if TOKENIZER[0] in files else []
    kinds += [_generation] if GENERATION in files else []
    kind = rng.choice(kinds)
    mutant.kind = kind.__name__.strip("_")
    kind(mutant, rng)
    return mutant


def split_weights(content: bytes) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_weights(header: dict | str, data: bytes, length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _weights(mutant: Mutant, rng: random.Random) -> str:
    return rng.choice([name for name in sorted(mutant.files) if name.endswith(".safetensors")])


def _edit_json(mutant: Mutant, name: str, change) -> None:
    content = json.loads(mutant.files[name])
    change(content)
    mutant.target, mutant.files[name] = name, json.dumps(content).encode()


def _change_key(content: dict, rng: random.Random, mutant: Mutant, more: list[str]) -> None:
    key = rng.choice([*content, *content, *more])
    how = rng.choice(["set", "set", "set", "delete", "scale", "wrap", "rename"])
    old = content.get(key)
    if how == "delete" and key in content:
        del content[key]
    elif how == "scale" and type(old) in (int, float):
        content[key] = old * rng.choice([-1, 2, 0.5, 100, 10**4])
    elif how == "wrap" and key in content:
        content[key] = rng.choice([[old], {"a": old}, str(old)])
    elif how == "rename" and key in content:
        content[key.upper()] = content.pop(key)
    else:
        how = "set"
        content[key] = copy.deepcopy(rng.choice(_VALUES))
    mutant.key = key
    mutant.what = f"{how} {key}: {old!r:.60} -> {content.get(key)!r:.60}"


def _config(mutant: Mutant, rng: random.Random) -> None:
    def change(content: dict) -> None:
        # A part of the config now and then, and now and then two keys at once.
        parts = [value for value in content.values() if isinstance(value, dict) and "quant_method" not in value]
        for _ in range(rng.choice([1, 1, 1, 2])):
            _change_key(rng.choice([content] * 4 + [p for p in parts if p]), rng, mutant, _FOREIGN)
            mutant.notes.append(mutant.key)

    _edit_json(mutant, CONFIG, change)


def _quantization(mutant: Mutant, rng: random.Random) -> None:
    def change(content: dict) -> None:
        if rng.random() < 0.1:
            content["quantization_config"] = copy.deepcopy(rng.choice(_VALUES))
            mutant.key = "quantization_config"
            mutant.what = f"quantization_config -> {content['quantization_config']!r:.60}"
        else:
            _change_key(content["quantization_config"], rng, mutant, _QUANTIZATION)

    _edit_json(mutant, CONFIG, change)


def _index(mutant: Mutant, rng: random.Random) -> None:
    def change(content: dict) -> None:
        names = content["weight_map"]
        key = mutant.key = rng.choice(sorted(names))
        value = rng.choice(
            [
                "../outside/x.safetensors",
                "/dev/zero",
                "",
                ".",
                "..",
                CONFIG,
                "none.safetensors",
                "a/../../x",
                "x\0y",
                5,
            ]
            + [None, [], {}, *names.values()]
        )
        how = rng.choice(["entry", "entry", "entry", "remove", "all", "map", "metadata"])
        if how == "entry":
            names[key] = value
        elif how == "remove":
            del names[key]
        elif how == "all":
            names.update(dict.fromkeys(names, value))
        elif how == "map":
            content["weight_map"] = copy.deepcopy(rng.choice(_VALUES))
        elif rng.random() < 0.5:
            del content["metadata"]
        else:
            content["metadata"] = copy.deepcopy(rng.choice(_VALUES))
        mutant.what = f"{how} {key} -> {value!r}"

    _edit_json(mutant, INDEX, change)


def _header(mutant: Mutant, rng: random.Random) -> None:
    mutant.target = _weights(mutant, rng)
    header, data = split_weights(mutant.files[mutant.target])
    tensors = [name for name in header if name != "__metadata__"]
    key = mutant.key = rng.choice(tensors)
    entry = header[key]
    how = rng.choice(
        ["shape", "shape", "dtype", "offsets", "offsets", "name", "remove", "twice", "length", "metadata", "extra"]
    )
    length = None
    if how == "shape":
        shape = entry["shape"]
        transposed, first = shape[::-1], [shape[0] * 2, *shape[1:]] if shape else [2]
        entry["shape"] = rng.choice([transposed, [1, *shape], first, [-1], [2**63], [0], [], [0, 10**12], "x", None])
    elif how == "dtype":
        entry["dtype"] = rng.choice(_DTYPES)
    elif how == "offsets":
        start, end = entry["data_offsets"]
        other = header[rng.choice(tensors)]["data_offsets"]
        choices = [
            [end, start],
            [start, end + 1],
            [start - 1, end],
            [0, 2**63],
            [-1, 0],
            other,
            [start],
            None,
            [start, start],
        ]
        entry["data_offsets"] = rng.choice(choices)
    elif how == "name":
        new = rng.choice([key + "x", key.replace(".0.", ".7."), "", "__metadata__", "x" * 1000, key.upper()])
        header[new] = header.pop(key)
    elif how == "remove":
        del header[key]
    elif how == "length":
        length = rng.choice([0, 1, 7, 10**6, 10**9, 2**31, 2**63, 2**64 - 1])
    elif how == "metadata":
        header["__metadata__"] = rng.choice([{}, {"format": "tf"}, {"format": 5}, None, [], "x", {"a": {"b": "c"}}])
    elif how == "extra":
        header["extra.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    text = json.dumps(header)
    if how == "twice":
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(header[rng.choice(tensors)])}}}"
    mutant.files[mutant.target] = join_weights(text, data, length)
    mutant.what = f"{how} of {key}: {header.get(key)!r:.90} {length or ''}"
    mutant.notes.append(how)


def _content(mutant: Mutant, rng: random.Random) -> None:
    mutant.target = _weights(mutant, rng)
    header, data = split_weights(mutant.files[mutant.target])
    tensors = [name for name in header if name != "__metadata__"]
    key = mutant.key = rng.choice(tensors)
    start, end = header[key]["data_offsets"]
    changed = bytearray(data)
    how = rng.choice(["bit", "bit", "zero", "ones", "random", "swap"])
    alike = [
        name
        for name in tensors
        if name != key and all(header[name][part] == header[key][part] for part in ("shape", "dtype"))
    ]
    if how == "swap" and alike:
        begin, stop = header[other := rng.choice(alike)]["data_offsets"]
        changed[start:end], changed[begin:stop] = data[begin:stop], data[start:end]
        mutant.notes.append(other)
    elif how == "zero":
        changed[start:end] = bytes(end - start)
    elif how == "ones":
        changed[start:end] = b"\xff" * (end - start)
    elif how == "random":
        changed[start:end] = rng.randbytes(end - start)
    else:
        how = "bit"
        changed[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    mutant.files[mutant.target] = mutant.files[mutant.target][: -len(data)] + bytes(changed)
    mutant.what = f"{how} of {key}"


def _bytes(mutant: Mutant, rng: random.Random) -> None:
    """Of any file but the tokenizer's, whose text nothing protects."""
    names = [
        name for name in sorted(mutant.files) if name not in TOKENIZER and name.endswith((".json", ".safetensors"))
    ]
    mutant.target = rng.choice(names)
    content = mutant.files[mutant.target]
    at = rng.randrange(len(content))
    how = rng.choice(["cut", "cut", "append", "insert", "empty", "nest", "utf16", "latin", "digits", "list"])
    if mutant.target.endswith(".safetensors"):
        how = rng.choice(["cut", "cut", "append", "insert", "empty"])
    mutant.files[mutant.target] = {
        "cut": content[:at],
        "append": content + rng.randbytes(rng.randrange(1, 20)),
        "insert": content[:at] + rng.randbytes(3) + content[at:],
        "empty": b"",
        "nest": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "utf16": content.decode("latin-1").encode("utf-16"),
        "latin": content[:at] + b"\xff\xfe" + content[at:],
        "digits": b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}",
        "list": b"[" + content + b"]",
    }[how]
    mutant.what = f"{how} at {at} of {len(content)}"


def _place(mutant: Mutant, rng: random.Random) -> None:
    """Something else lies where a file should."""
    names = [name for name in sorted(mutant.files) if name not in TOKENIZER]
    mutant.target = rng.choice(names)
    mutant.files[mutant.target] = rng.choice([None, FIFO, FOLDER, LINK_OUT])
    mutant.what = str(mutant.files[mutant.target])


def _generation(mutant: Mutant, rng: random.Random) -> None:
    _edit_json(
        mutant, GENERATION, lambda content: _change_key(content, rng, mutant, ["max_length", "top_p", "num_beams"])
    )


def _tokenizer(mutant: Mutant, rng: random.Random) -> None:
    name = rng.choice(TOKENIZER)
    if rng.random() < 0.4:
        content = mutant.files[name]
        at = rng.randrange(len(content))
        mutant.target, mutant.files[name] = (
            name,
            rng.choice([content[:at], b"", content[:at] + b"\xff" + content[at:]]),
        )
        mutant.what = f"damaged at {at}"
        return

    def change(content: dict) -> None:
        parts = [part for part in content.values() if isinstance(part, dict) and part]
        _change_key(rng.choice([content, content, *parts]), rng, mutant, ["model_max_length", "tokenizer_class"])

    _edit_json(mutant, name, change)
