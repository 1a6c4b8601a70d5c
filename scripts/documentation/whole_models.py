"""Results of whole models on the native decoder, beside other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Bars
from .shown import Shown, load, machine


TPS = "tokens a second"


def row_of(file: str, **wanted: Any) -> dict:
    """The row of a record with these values."""
    return next(row for row in load(file) if all(row[name] == value for name, value in wanted.items()))


def _pair(row: Mapping[str, Any]) -> str:
    return f"{row['decode_tps']:.1f} / {row['prefill_tps']:.0f}"


DECODE = "decode.json"
OURS = "hf-bitdistill, {}-bit head"
LLAMA_CPP = "llama.cpp TQ2_0, Q8_0 head"
IK = "ik_llama.cpp IQ2_BN, Q{}_0 head"
IK_AVX2 = f"{IK.format(8)}, built for AVX2"


def best_isa() -> str:
    """Of the CPU of `decode.json`: the kernels that the library chooses there by itself."""
    return next(row["isa"] for row in load(DECODE) if row["isa"])


def decode() -> Shown:
    systems = [OURS.format(8), IK.format(8), LLAMA_CPP, OURS.format(4), IK.format(4)]
    shapes = [(shape, threads) for shape in ("0.6B", "2B4T") for threads in (1, 2)]
    columns = [f"{shape}, {threads} thread{'s' if threads > 1 else ''}" for shape, threads in shapes]
    found = {
        name: [
            row_of(DECODE, system=name, shape=shape, threads=t, isa=best_isa() if name.startswith("hf-") else None)
            for shape, t in shapes
        ]
        for name in systems
    }
    ours = found[systems[0]]
    reads = ", ".join(f"{row['read_gbps']:.1f}" for row in ours[:2])
    return Shown(
        ["decode / prompt (share of the read bandwidth)", *columns],
        [
            [name, *(f"{_pair(row)} ({100 * row['share_of_read_bandwidth']:.0f} %)" for row in each)]
            for name, each in found.items()
        ],
        [DECODE],
        f"{machine_of(ours[-1])}; {_what_ran(ours[0])}; read bandwidth {reads} GB/s",
        Bars(f"{TPS}, decoding", columns, {name: [row["decode_tps"] for row in each] for name, each in found.items()}),
        "Tokens a second of the native decoder, of ik_llama.cpp and of llama.cpp in one run",
    )


def _what_ran(row: Mapping[str, Any]) -> str:
    return (
        f"random weights, a prompt of {row['prompt_tokens']}, {row['new_tokens']} new tokens, "
        f"medians of {len(row['decode_tps_rounds'])} rounds"
    )


def machine_of(row: Mapping[str, Any]) -> str:
    """What a row says about its machine."""
    return machine({"cpu": row["cpu"], "threads": row["threads"], "date": row["date"]})


def mixture() -> Shown:
    file = "decode_mixture.json"
    (row,) = load(file)
    return Shown(
        ["model", "decode", "prompt", "share of the read bandwidth", "loading"],
        [
            [
                "shape of Qwen3-30B-A3B, 8 of 128 experts a token",
                f"{row['decode_tps']:.1f}",
                f"{row['prefill_tps']:.0f}",
                f"{100 * row['share_of_read_bandwidth']:.0f} %",
                f"{row['load_seconds']:.0f} s",
            ]
        ],
        [file],
        f"{machine_of(row)}; random weights, 8-bit head, a prompt of 512, 64 new tokens, medians of 3 rounds",
    )


def isas() -> Shown:
    ours = list(dict.fromkeys(row["isa"] for row in load(DECODE) if row["isa"]))
    names = [(f"{head}-bit head, {isa}", OURS.format(head), isa) for head in (8, 4) for isa in ours]
    names.insert(len(ours), (IK_AVX2, IK_AVX2, None))
    found = {
        name: [row_of(DECODE, system=system, isa=isa, shape="0.6B", threads=t) for t in (1, 2)]
        for name, system, isa in names
    }
    first = next(iter(found.values()))

    def cell(rows: Sequence[Mapping[str, Any]], key: str, digits: int) -> str | None:
        return " / ".join(f"{row[key]:.{digits}f}" for row in rows) if rows[0][key] else None

    columns = {
        "decode": ("decode_tps", 1),
        "prompt": ("prefill_tps", 0),
        "peak of the kernels, GMAC/s": ("peak_gmacs", 0),
    }
    return Shown(
        ["0.6B, 1 / 2 threads", *columns],
        [[name, *(cell(rows, *column) or "" for column in columns.values())] for name, rows in found.items()],
        [DECODE],
        f"{machine_of(first[-1])}; {_what_ran(first[0])}",
        Bars(f"{TPS}, prompt, 0.6B", list(found), {f"{t} thread{'s' if t > 1 else ''}": [rows[t - 1]["prefill_tps"] for rows in found.values()] for t in (1, 2)}),
        "Tokens a second by instruction set",
    )  # fmt: skip
