"""Speed of the native decoder in two builds of this library, measured alternately: what a change costs.

    python benchmarks/bench_compare.py --interpreters BEFORE/.venv/bin/python AFTER/.venv/bin/python --output result.json

Each interpreter is one in whose environment a build is installed. Each build lives in a process of its own and waits while the other is measured; in
every round both are measured one right after the other, in turns the one or the other first. The ratio of a round compares these two; the median
of the ratios (after / before in speed: below 1 is slower) says what the change costs, and its quartiles how well that is known on a machine that
others use. With `--environments` one build is compared with itself under another setting. Measured are decoding from an empty context, decoding
at a depth, a prompt read at once, and some tokens read together at the depth, as assisted decoding does. Models are random (see `bench_decode.py`).
`--cpu_time` counts the seconds that a process computes instead of those that pass: with one thread that leaves out what others took of a busy machine; with more it also counts threads that wait.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from decode.process import MeasuredProcess


TOGETHER = 8  # tokens that are verified at once
NAMES = ("before", "after")


# ---- In the process of a build ---------------------------------------------------------------------------------------


def write(shape: str, checkpoint: str) -> None:
    """Writes the random model."""
    from decode.models import SHAPES, write_checkpoint

    write_checkpoint(SHAPES[shape], Path(checkpoint))


def work(checkpoint: str, head_bits: int, settings: dict[str, int], cpu_time: bool) -> None:
    """Loads the model, then measures whatever a line of standard input asks for: `[what, threads]`, or nothing to end."""
    import torch

    import hf_bitdistill
    from optimum.bitnet import BitNetModelForCausalLM

    decoder = BitNetModelForCausalLM.from_pretrained(checkpoint, head_bits=head_bits).decoder
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, decoder.spec.vocab_size, (settings["depth"],), generator=generator)
    cache = decoder.new_cache(2)  # sequence 0: at the depth; 1: everything else

    def forward(count: int, sequence: int) -> None:
        sequences = torch.full((count,), sequence)
        decoder.forward(cache, tokens[:count], sequences, torch.tensor([count - 1]))

    def steps(sequence: int) -> int:
        for _ in range(settings["new_tokens"]):
            forward(1, sequence)
        return settings["new_tokens"]

    def at_once(count: int, sequence: int) -> int:
        forward(count, sequence)
        return count

    measures = {
        "decode": lambda: steps(1),
        "decode at depth": lambda: steps(0),
        "prompt": lambda: at_once(settings["prompt"], 1),
        "together at depth": lambda: sum(at_once(TOGETHER, 0) for _ in range(4)),
    }
    clock = time.process_time if cpu_time else time.perf_counter
    decoder.num_threads = os.cpu_count()
    forward(settings["depth"], 0)
    print(json.dumps(str(Path(hf_bitdistill.__file__).parent)), flush=True)
    for line in sys.stdin:
        what, decoder.num_threads = json.loads(line)
        start = clock()
        count = measures[what]()
        seconds = clock() - start
        cache.truncate(0, settings["depth"])
        cache.truncate(1, 0)
        print(json.dumps(count / seconds), flush=True)


# ---- The comparison --------------------------------------------------------------------------------------------------


def compare(builds: list[MeasuredProcess], threads: list[int], rounds: int) -> list[dict]:
    """One row for each kind of work and number of threads."""
    cases = [(what, n) for n in threads for what in ("decode", "decode at depth", "prompt", "together at depth")]
    rates = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            order = (0, 1) if number % 2 else (1, 0)
            measured = {which: builds[which].measure(*case) for which in order}
            if number:  # the first warms up
                rates[case].append((measured[0], measured[1]))
    rows = []
    for (what, n), pairs in rates.items():
        ratios = [after / before for before, after in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        medians = {f"{name}_tps": round(statistics.median(p[i] for p in pairs), 2) for i, name in enumerate(NAMES)}
        rows.append(
            {
                "what": what,
                "threads": n,
                **medians,
                "ratio": round(middle, 4),
                "ratio_quartiles": [round(low, 4), round(high, 4)],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreters", nargs=2, metavar=("BEFORE", "AFTER"), required=True)
    parser.add_argument(
        "--environments",
        nargs=2,
        metavar=("NAME=VALUE", "NAME=VALUE"),
        help="a variable for each; the builds may be the same then",
    )
    parser.add_argument("--shape", default="0.6B", help="one of bench_decode.py")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--head_bits", type=int, default=8, choices=[32, 16, 8, 4])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--depth", type=int, default=2048)
    parser.add_argument("--new_tokens", type=int, default=16, help="of a measurement of decoding")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu_time", action="store_true", help="count seconds of computing, not of waiting")
    parser.add_argument("--checkpoint", type=Path, help="keep the random model here; default: a temporary folder")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    from hf_bitdistill.machine.environment import processor_name

    settings = {name: getattr(args, name) for name in ("prompt", "depth", "new_tokens")}
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = args.checkpoint or Path(temporary) / "model"
        if not checkpoint.exists():
            # By the earlier build: the later one reads what it writes, not the other way round.
            subprocess.run([args.interpreters[0], __file__, "--write", args.shape, str(checkpoint)], check=True)
        builds = [
            MeasuredProcess(
                interpreter,
                __file__,
                str(checkpoint),
                *map(json.dumps, (args.head_bits, settings, args.cpu_time)),
                environment=dict([setting.split("=", 1)]) if setting else {},
            )
            for interpreter, setting in zip(args.interpreters, args.environments or ("", ""), strict=True)
        ]
        if builds[0].about == builds[1].about and not args.environments:
            raise SystemExit(f"both interpreters have the same build, {builds[0].about}")
        rows = compare(builds, args.threads, args.rounds)
        for build in builds:
            build.close()
    for row in rows:
        print(json.dumps(row))
    if args.output:
        about = {"shape": args.shape, "head_bits": args.head_bits, **settings, "rounds": args.rounds}
        about |= {"cpu_time": args.cpu_time, "date": date.today().isoformat()}
        about |= {"environments": args.environments} if args.environments else {}
        about |= {"isa": os.environ.get("HF_BITDISTILL_ISA", "default"), "cpu": processor_name()}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], *map(json.loads, sys.argv[3:]))
    elif sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:])
    else:
        main()
