"""Speed of the kernels against torch and against the limits of the machine, measured in the same run.

    python benchmarks/bench_kernels.py [--threads 1 2] [--isa avx2 ...] [--output FILE]

Every time is the best of interleaved rounds: a round runs every contender once, so that a disturbance of the machine
hits all of them alike, and so are the limits of the machine. Matrix-vector products walk through copies of the matrix that together exceed `--set-mb`, so that
weights come from memory; that is stated as `cold`. `--set-mb` must exceed the last-level cache for this to be true (by far: 1200 for a
cache of 260 MB). All sets and the buffer of the read bandwidth lie in huge pages where the system gives them. The time of a product is
that of a call from Python; `call_overhead_microseconds` is what a call with a 16 x 16 weight takes, and the share of the bandwidth is given
with and without it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import native_library
from hf_bitdistill import ops
from hf_bitdistill.machine.environment import processor_name
from hf_bitdistill.ops.c_header import FLOAT32
from hf_bitdistill.ops.huge_pages import HugePageArena, aligned


# (rows, columns) of the projections of a 0.6B model and of BitNet b1.58 2B4T.
SHAPES = {
    "0.6B": [(2048, 1024), (1024, 2048), (3072, 1024), (1024, 3072)],
    "2B4T": [(2560, 2560), (640, 2560), (6912, 2560), (2560, 6912)],
}
HEADS = {"0.6B": (151936, 1024), "2B4T": (128256, 2560)}


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache, where Linux tells it."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(file.read_text().strip().removesuffix("K")) << 10 for file in files), default=None)


def best_times(contenders: dict, rounds: int, limit=lambda: 0.0) -> tuple[dict[str, float], float]:
    """Best seconds of each callable and best of `limit()`, which returns a rate, interleaved."""
    best = dict.fromkeys(contenders, float("inf"))
    rate = 0.0
    for _ in range(rounds):
        rate = max(rate, limit())
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best, rate


def packed_weight(kind: str, rows: int, cols: int) -> torch.Tensor:
    if kind == "int8":
        return ops.int8_pack(torch.randint(-127, 128, (rows, cols), dtype=torch.int8), torch.rand(rows))
    if kind == "int4":
        groups = (cols + 31) // 32
        codes = torch.randint(0, 256, (rows, (cols + 1) // 2), dtype=torch.uint8)
        return ops.int4_pack(codes, torch.rand(rows, groups).half(), cols)
    codes = torch.randint(0, 3, (4, (rows + 3) // 4, cols), dtype=torch.uint8)
    storage = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
    if kind == "ternary":
        return ops.ternary_pack(storage, torch.rand(1), rows)
    group = int(kind.removeprefix("ternary-g"))
    return ops.ternary_pack(storage, torch.rand(rows, (cols + group - 1) // group), rows, group)


def copies(t: torch.Tensor, set_bytes: int) -> list[torch.Tensor]:
    size = aligned(t.numel() * t.element_size())
    n = max(1, -(-set_bytes // size))
    buffer = HugePageArena(n * size)
    return [buffer.take(t) for _ in range(n)]


def walk(function: Callable, weights: list) -> Callable[[], None]:
    def run():
        for weight in weights:
            function(weight)

    return run


def product_with_vector(library, rows: int, cols: int) -> Callable[[torch.Tensor], None]:
    """The C function itself, called from Python; the torch operator around it is not in these times."""
    x, out = torch.randn(1, cols), torch.empty(1, rows)

    def kernel(w):
        status = library.linear(
            w.data_ptr(), w.numel(), x.data_ptr(), cols, FLOAT32, 1, None, 0, 0.0, None, 0, out.data_ptr(), rows
        )
        library.check(status, "linear")

    return kernel


def bench_gemv(library, threads, rows, cols, kinds, set_bytes, rounds, read):
    x = torch.randn(1, cols)
    kernel, tiny = product_with_vector(library, rows, cols), product_with_vector(library, 16, 16)
    calls = [packed_weight("ternary", 16, 16)] * 1000
    results = {}
    for kind in kinds:
        sets = {kind: copies(packed_weight(kind, rows, cols), set_bytes)}
        dense = torch.randn(rows, cols)
        sets["float32"] = copies(dense, set_bytes)
        sets["bfloat16"] = copies(dense.bfloat16(), set_bytes)
        half = x.bfloat16()
        runs = {
            kind: walk(kernel, sets[kind]),
            "float32": walk(lambda w: F.linear(x, w), sets["float32"]),
            "bfloat16": walk(lambda w, half=half: F.linear(half, w), sets["bfloat16"]),
            "call": walk(tiny, calls),
        }
        sets["call"] = calls
        library.set_threads(threads)  # packing, a torch operator, has set the library's threads to torch's
        times, bandwidth = best_times(runs, rounds, read)
        times = {name: t / len(sets[name]) for name, t in times.items()}
        size, cache = sets[kind][0].numel(), last_level_cache_bytes()
        rate = size / times[kind]
        results[kind] = {
            "microseconds": times[kind] * 1e6,
            "call_overhead_microseconds": times["call"] * 1e6,
            "bytes": size,
            "copies": len(sets[kind]),
            "cold": None if cache is None else len(sets[kind]) * size > 2 * cache,
            "gigabytes_per_second": rate / 1e9,
            "read_gigabytes_per_second": bandwidth / 1e9,
            "share_of_read_bandwidth": rate / bandwidth,
            "share_of_read_bandwidth_without_call_overhead": size / (times[kind] - times["call"]) / bandwidth,
            "times_faster_than_float32": times["float32"] / times[kind],
            "times_faster_than_bfloat16": times["bfloat16"] / times[kind],
        }
    return results


def bench_gemm(rows, cols, kinds, tokens, rounds, multiply_add):
    x = torch.randn(tokens, cols)
    half = x.bfloat16()
    dense = torch.randn(rows, cols)
    dense_half = dense.bfloat16()
    runs = {"float32": lambda: F.linear(x, dense), "bfloat16": lambda: F.linear(half, dense_half)}
    for kind in kinds:
        packed = packed_weight(kind, rows, cols)
        runs[kind] = lambda packed=packed: ops.packed_linear(x, packed, rows)
    times, peak = best_times(runs, rounds, multiply_add)
    return {
        kind: {
            "microseconds": times[kind] * 1e6,
            "gmac_per_second": rows * cols * tokens / times[kind] / 1e9,
            "peak_gmac_per_second": peak / 1e9,
            "share_of_multiply_add_peak": rows * cols * tokens / times[kind] / peak,
            "times_faster_than_float32": times["float32"] / times[kind],
            "times_faster_than_bfloat16": times["bfloat16"] / times[kind],
        }
        for kind in kinds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", nargs="+", help="instruction sets; default: the best one")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument(
        "--set-mb", type=int, default=1200, help="size of the set of matrices of a matrix-vector product"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-heads", action="store_true", help="leave out the output heads")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    library = native_library.load()
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor_name(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library": library.version,
        "last_level_cache_bytes": last_level_cache_bytes(),
        "set_megabytes": args.set_mb,
        "rounds": args.rounds,
        "runs": [],
    }
    set_bytes = args.set_mb << 20
    rounds = 3 * args.rounds  # of the short measurements
    buffer = HugePageArena(set_bytes).rest()[:set_bytes].fill_(1)

    def read() -> float:
        return library.read_bandwidth(buffer.data_ptr(), set_bytes)

    torch.manual_seed(0)
    with torch.inference_mode():
        for isa in args.isa or [library.isa]:
            library.set_isa(isa)
            for threads in args.threads:
                torch.set_num_threads(threads)
                ops.set_num_threads(threads)
                library.set_threads(threads)
                run = {"isa": isa, "threads": threads, "gemv": [], "gemm": []}
                report["runs"].append(run)
                print(f"{isa}, {threads} threads", file=sys.stderr)
                kinds = ["ternary", "ternary-g128"]
                for model in args.models:
                    shapes = [(shape, kinds) for shape in SHAPES[model]]
                    if not args.no_heads:
                        shapes.append((HEADS[model], ["int8", "int4"]))
                    for (rows, cols), shape_kinds in shapes:
                        for kind, result in bench_gemv(
                            library, threads, rows, cols, shape_kinds, set_bytes, args.rounds, read
                        ).items():
                            run["gemv"].append({"model": model, "rows": rows, "cols": cols, "weight": kind, **result})
                            print(f"  gemv {rows}x{cols} {kind}: {result['gigabytes_per_second']:.1f} GB/s, "
                                  f"{result['share_of_read_bandwidth']:.0%} of the bandwidth "
                                  f"({result['share_of_read_bandwidth_without_call_overhead']:.0%} without the call), "
                                  f"{result['times_faster_than_bfloat16']:.1f} x bfloat16", file=sys.stderr)  # fmt: skip
                    for rows, cols in SHAPES[model]:
                        for tokens in args.tokens:
                            for kind, result in bench_gemm(
                                rows, cols, kinds, tokens, rounds, library.multiply_add_rate
                            ).items():
                                run["gemm"].append(
                                    {
                                        "model": model,
                                        "rows": rows,
                                        "cols": cols,
                                        "tokens": tokens,
                                        "weight": kind,
                                        **result,
                                    }
                                )
                                print(f"  gemm {rows}x{cols} {tokens} tokens {kind}: {result['gmac_per_second']:.0f} GMAC/s, "
                                      f"{result['share_of_multiply_add_peak']:.0%} of the peak of "
                                      f"{result['peak_gmac_per_second']:.0f}, "
                                      f"{result['times_faster_than_bfloat16']:.1f} x bfloat16", file=sys.stderr)  # fmt: skip
    text = json.dumps(report, indent=2)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
