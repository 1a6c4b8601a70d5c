"""How long a model takes until its first token is possible, and how much memory meanwhile: from its checkpoint, and from its native file.

    python benchmarks/bench_loading.py [--shapes 0.6B] [--weight_bits 2] [--rounds 5] [--folder FOLDER] --output benchmarks/results/loading.json

Each load is the only one of a process of its own, all files are in the system's cache, and rounds are interleaved; medians are reported, and
the least, which says more where other programs run. `seconds` is the call of `from_pretrained`, `cpu_seconds` what all threads computed
meanwhile, `first_token_seconds` the token after it, `with_imports_seconds` all from the start of the process to that token. `peak_bytes` is what
the process had at most above what it had before the call; `file_bytes` is the native file's size. "mixture" has the layers and experts of Qwen3-30B-A3B, a quarter of the former and small ones: its
number of tensors is what costs, and what a larger one costs follows from bytes and tensors. `weight_bits` are those of the checkpoint's file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


CHILD = """
import json, sys, time
started = float(sys.argv[1])
import torch
from optimum.bitnet import BitNetModelForCausalLM
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) << 10
torch.set_num_threads(int(sys.argv[4]))
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # forget the highest
before, start, used = memory("VmRSS"), time.perf_counter(), time.process_time()
model = BitNetModelForCausalLM.from_pretrained(sys.argv[2], head_bits=8, native_file=sys.argv[3] == "native")
loaded, used = time.perf_counter(), time.process_time() - used
peak = memory("VmHWM")
with torch.no_grad():
    token = int(model(torch.tensor([[1]])).logits[0, -1].argmax())
print(json.dumps({
    "seconds": loaded - start, "cpu_seconds": used, "first_token_seconds": time.perf_counter() - loaded, "with_imports_seconds": time.time() - started,
    "peak_bytes": peak - before, "token": token, "from_native_file": model._opened_student is None,
    "tensors": sum(len(layer.projections) for layer in model.decoder.spec.layers),
}))
"""


def measure(checkpoint: Path, kind: str, threads: int) -> dict:
    """One load in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(time.time()), str(checkpoint), kind, str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from decode.models import SHAPES, Shape, write_checkpoint

    from hf_bitdistill.files.model_folder import NATIVE_FOLDER
    from hf_bitdistill.machine.environment import processor_name

    shapes = {**SHAPES, "mixture": Shape(512, 1536, 12, 8, 2, 32768, 64, 128, 8, 192)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["0.6B", "mixture"], choices=list(shapes))
    parser.add_argument("--weight_bits", nargs="+", type=float, default=[1.6, 2], choices=(1.6, 2))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the random models here; default: a temporary folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.shapes:
            folders = {bits: (args.folder or Path(temporary)) / f"{name}-{bits}-bits" for bits in args.weight_bits}
            for bits, folder in folders.items():
                if not folder.exists():
                    # By a process of its own: what allocators keep is not taken from what is measured.
                    writer = multiprocessing.get_context("spawn").Process(
                        target=write_checkpoint, args=(shapes[name], folder, bits)
                    )
                    writer.start()
                    writer.join()
                    if writer.exitcode:
                        raise SystemExit(f"{name}: the model could not be written")
            first = [measure(folder, "native", args.threads) for folder in folders.values()]  # writes the native files
            kinds = {"checkpoint": "checkpoint", "native file": "native"}
            rounds = [
                {
                    (bits, kind): measure(folder, argument, args.threads)
                    for bits, folder in folders.items()
                    for kind, argument in kinds.items()
                }
                for _ in range(args.rounds)
            ]
            for bits, kind in rounds[0]:
                loads = [each[bits, kind] for each in rounds]
                if any(load["token"] != first[0]["token"] for load in (*first, *loads)):
                    raise SystemExit(f"{name}: two ways of loading give two tokens")
                if any(load["from_native_file"] != (kind == "native file") for load in loads):
                    raise SystemExit(f"{name}: the {kind} was not what it was loaded from")
                (file,) = (folders[bits] / NATIVE_FOLDER).glob("*.native")
                timed = {
                    key: [load[key] for load in loads]
                    for key in ("seconds", "cpu_seconds", "first_token_seconds", "with_imports_seconds", "peak_bytes")
                }
                results.append(
                    {
                        "shape": name,
                        "weight_bits": bits,
                        "loaded_from": kind,
                        "threads": args.threads,
                        **{key: round(statistics.median(values), 3) for key, values in timed.items()},
                        "least_seconds": round(min(timed["seconds"]), 3),
                        "checkpoint_bytes": sum(each.stat().st_size for each in folders[bits].glob("*.safetensors")),
                        "file_bytes": file.stat().st_size,
                        "tensors": loads[0]["tensors"],
                        "load_average": round(os.getloadavg()[0], 1),
                        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                        "cpu": processor_name(),
                    }
                )
                print(json.dumps(results[-1]), file=sys.stderr)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
