"""Ternary weights with 1.6 bits against 2 bits: the product with the kernels of this CPU, and how long it takes to unpack a file.

    python benchmarks/bench_dense.py [--threads 1 2] [--set-mb 160] [--output FILE]

Both forms compute the same; each time is the least of interleaved rounds, a round runs both. `memory`: a matrix-vector product walks
through copies of the matrix that together exceed `--set-mb` (of the form with 2 bits), so that weights come from memory where the set is
larger than the last-level cache. `cache`: the same matrix again and again. The library decides by a measurement of its own
(`chosen_here`); here both forms are forced.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from bench_kernels import best_times, copies, last_level_cache_bytes

import native_library
from hf_bitdistill import ops
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.ops.c_header import FLOAT32
from hf_bitdistill.ops.dense_storage import unpack_stored
from hf_bitdistill.quantization import check_packed_weight, pack_dense, pack_ternary, unpack_dense


SHAPES = [(2560, 2560), (6912, 2560), (3072, 1024)]
TOKENS = [1, 2, 4, 5, 8, 10, 64, 512]
FORMS = {"2_bits": "0", "1.6_bits": "1"}


def packed_weights(rows: int, cols: int) -> dict[str, torch.Tensor]:
    storage = pack_ternary(torch.randint(-1, 2, (rows, cols), dtype=torch.int8))
    weights, scale = {}, torch.rand(1)
    for form, said in FORMS.items():
        os.environ["HF_BITDISTILL_DENSE"] = said
        weights[form] = ops.ternary_pack(storage, scale, rows)
    del os.environ["HF_BITDISTILL_DENSE"]
    return weights


def compare(library, weights: dict[str, list[torch.Tensor]], rows: int, cols: int, tokens: int, rounds: int) -> dict:
    """Times of one product; weights that are several are walked through."""
    x, out = torch.randn(tokens, cols), torch.empty(tokens, rows)

    def product(packed: list[torch.Tensor]) -> Callable[[], None]:
        calls = [
            (w.data_ptr(), w.numel(), x.data_ptr(), x.numel(), FLOAT32, tokens, None, 0, 0.0, None, 0)
            + (out.data_ptr(), out.numel())
            for w in packed
        ]

        def run() -> None:
            for call in calls:
                library.check(library.linear(*call), "linear")

        return run

    runs = {form: product(packed) for form, packed in weights.items()}
    results = {}
    for form, run in runs.items():
        run()
        results[form] = out.clone()
    if not torch.equal(*results.values()):
        raise SystemExit("the two forms compute different numbers")
    times = {form: t / len(weights[form]) for form, t in best_times(runs, rounds)[0].items()}
    two, dense = times.values()
    return {
        "tokens": tokens,
        "copies": len(next(iter(weights.values()))),
        **{f"{form}_microseconds": round(t * 1e6, 2) for form, t in times.items()},
        **{f"{form}_gigabytes_per_second": round(weights[form][0].numel() / t / 1e9, 1) for form, t in times.items()},
        "speedup": round(two / dense, 3),
    }


def loading(rows: int, cols: int, rounds: int) -> dict:
    """What a loader does with the weight of a file of either form, on one thread."""
    stored = pack_ternary(torch.randint(-1, 2, (rows, cols), dtype=torch.int8))
    dense = pack_dense(stored, rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times, _ = best_times(
        {
            "unpack_1.6_bits": lambda: unpack_stored(dense, rows, cols),
            "unpack_1.6_bits_in_torch": lambda: unpack_dense(dense, rows, cols),
            "pack_1.6_bits": lambda: pack_dense(stored, rows),
            "check_2_bits": lambda: check_packed_weight(stored, rows, cols),
        },
        rounds,
    )
    torch.set_num_threads(threads)
    return {
        name: {"milliseconds": round(t * 1e3, 2), "weights_per_second": rows * cols / t} for name, t in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--set-mb", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    library = native_library.load()
    report = {
        **describe_environment(),
        "isa": library.isa,
        "chosen_here": "1.6 bits" if library.packs_densely(*SHAPES[0]) else "2 bits",
        "last_level_cache_bytes": last_level_cache_bytes(),
        "set_megabytes": args.set_mb,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "loading": loading(*SHAPES[1], max(3, args.rounds // 4)),
        "products": [],
    }
    for rows, cols in SHAPES:
        weights = packed_weights(rows, cols)
        count = len(copies(weights["2_bits"], args.set_mb << 20))
        sets = {form: copies(w, count * w.numel()) for form, w in weights.items()}
        sets = {form: walked[: min(map(len, sets.values()))] for form, walked in sets.items()}
        for threads in args.threads:
            library.set_threads(threads)
            for tokens in args.tokens:
                rounds = max(4, args.rounds // max(1, tokens // 64))
                for place, held in (("cache", {form: [w] for form, w in weights.items()}), ("memory", sets)):
                    if place == "memory" and tokens > 10:
                        continue  # (arithmetic is the limit)
                    repeated = rounds * (1 if place == "memory" else 20 if tokens <= 10 else 2)
                    result = compare(library, held, rows, cols, tokens, repeated)
                    report["products"].append({"shape": [rows, cols], "threads": threads, "place": place, **result})
                    print(json.dumps(report["products"][-1]), flush=True)
    print(json.dumps({key: value for key, value in report.items() if key != "products"}))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
