"""Speed at a long context: a prompt of that length read at once, and tokens decoded behind it, for every way to keep keys and values.

    python benchmarks/bench_long_context.py [--depth 8192] [--kv_bits 16 8] [--threads 1 2] --output benchmarks/results/long_context.json
    python benchmarks/bench_long_context.py --before BEFORE/.venv/bin/python ...     # also the build of that environment, 16 bits

The model is random (see `bench_decode.py`). Every system lives in a process of its own and waits while another is measured; rounds are
interleaved, and medians are reported, with the best beside them: on a machine that others use it says more. `read_gbps` is the read bandwidth of
the same number of threads, measured in the same rounds; `share_of_read_bandwidth` is that of weights, head and cache together, over a whole token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from decode.process import MeasuredProcess


READ_BYTES = 600 << 20  # larger than the last-level cache


# ---- In the process of a system --------------------------------------------------------------------------------------


def work(checkpoint: str, options: dict[str, int], depth: int, new_tokens: int) -> None:
    """Loads the model, fills a cache, then measures whatever a line of standard input asks for: `[what, threads]`, or nothing to end."""
    import torch

    from optimum.bitnet import BitNetModelForCausalLM

    decoder = BitNetModelForCausalLM.from_pretrained(checkpoint, **options).decoder
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, decoder.spec.vocab_size, (depth,), generator=generator)
    cache = decoder.new_cache(1)

    def forward(count: int) -> None:
        decoder.forward(cache, tokens[:count], torch.zeros(count, dtype=torch.long), torch.tensor([count - 1]))

    def prefill() -> float:
        cache.truncate(0, 0)
        start = time.perf_counter()
        forward(depth)
        return depth / (time.perf_counter() - start)

    def decode() -> float:
        cache.truncate(0, depth)
        start = time.perf_counter()
        for _ in range(new_tokens):
            forward(1)
        return new_tokens / (time.perf_counter() - start)

    decoder.num_threads = os.cpu_count()
    prefill()
    print(json.dumps({"weight_bytes": decoder.bytes_per_token, "cache_bytes": cache.nbytes}), flush=True)
    for line in sys.stdin:
        what, decoder.num_threads = json.loads(line)
        print(json.dumps({"decode": decode, "prefill": prefill}[what]()), flush=True)


# ---- The comparison --------------------------------------------------------------------------------------------------


def measure(systems: dict[str, MeasuredProcess], read, args: argparse.Namespace) -> list[dict]:
    """One row for each system and number of threads."""
    kinds = ["decode"] * args.decodes + (["prefill"] if args.prefill else [])
    rates = {(name, n, what): [] for name in systems for n in args.threads for what in kinds}
    reads = {n: [] for n in args.threads}
    for _ in range(args.rounds):
        for n in args.threads:
            for what in kinds:
                reads[n].append(read(n))
                for name, system in systems.items():
                    rates[name, n, what].append(system.measure(what, n))
    rows = []
    for name, system in systems.items():
        for n in args.threads:
            row = {"system": name, "threads": n, **system.about}
            for what in dict.fromkeys(kinds):
                row[f"{what}_tps"] = round(statistics.median(rates[name, n, what]), 2)
                row[f"{what}_tps_best"] = round(max(rates[name, n, what]), 2)
            total = system.about["weight_bytes"] + system.about["cache_bytes"]
            bandwidth = statistics.median(reads[n])
            row["read_gbps"], row["read_gbps_best"] = round(bandwidth / 1e9, 2), round(max(reads[n]) / 1e9, 2)
            row["share_of_read_bandwidth"] = round(row["decode_tps"] * total / bandwidth, 3)
            row["share_of_read_bandwidth_best"] = round(row["decode_tps_best"] * total / max(reads[n]), 3)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.6B", help="one of bench_decode.py")
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--kv_bits", type=int, nargs="+", default=[16, 8], choices=[32, 16, 8])
    parser.add_argument("--head_bits", type=int, default=8, choices=[32, 16, 8, 4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--before", help="interpreter of an environment with an earlier build, to compare with")
    parser.add_argument("--new_tokens", type=int, default=16, help="of a measurement of decoding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decodes", type=int, default=3, help="measurements of decoding a round")
    parser.add_argument("--prefill", action=argparse.BooleanOptionalAction, default=True, help="a prompt a round too")
    parser.add_argument("--checkpoint", type=Path, help="keep the random model here; default: a temporary folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    from decode.models import SHAPES, write_checkpoint

    import native_library
    from hf_bitdistill.machine.environment import processor_name
    from hf_bitdistill.ops import huge_pages

    library = native_library.load()
    # In large pages, as the cache is.
    buffer = huge_pages.zeros(READ_BYTES).fill_(1)

    def read(threads: int) -> float:
        library.set_threads(threads)
        return max(library.read_bandwidth(buffer.data_ptr(), READ_BYTES) for _ in range(3))

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = args.checkpoint or Path(temporary) / "model"
        if not checkpoint.exists():
            write_checkpoint(SHAPES[args.shape], checkpoint)
        config = json.loads((checkpoint / "config.json").read_text())
        config["max_position_embeddings"] = max(config["max_position_embeddings"], 2 * args.depth)
        (checkpoint / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        head = {"head_bits": args.head_bits}
        wanted = {f"{bits} bits": (sys.executable, head | {"kv_bits": bits}) for bits in args.kv_bits}
        if args.before:
            wanted = {"before": (args.before, head)} | wanted
        systems = {
            name: MeasuredProcess(
                interpreter, __file__, str(checkpoint), *map(json.dumps, (options, args.depth, args.new_tokens))
            )
            for name, (interpreter, options) in wanted.items()
        }
        rows = measure(systems, read, args)
        for system in systems.values():
            system.close()
    for row in rows:
        print(json.dumps(row))
    about = {name: getattr(args, name) for name in ("shape", "depth", "head_bits", "new_tokens", "rounds")}
    about |= {
        "date": date.today().isoformat(),
        "threads": args.threads,
        "isa": os.environ.get("HF_BITDISTILL_ISA", "default"),
        "cpu": processor_name(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], *map(json.loads, sys.argv[3:]))
    else:
        main()
