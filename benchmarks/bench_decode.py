"""Speed of whole models: the native decoder on every instruction set of this CPU, against other programs and the limits of the machine,
measured in the same run.

    python benchmarks/bench_decode.py [--shapes 0.6B 2B4T] [--threads 1 2] [--isas avx2 ...] --output benchmarks/results/decode.json
        [--llama_bench NAME=PATH --gguf [SHAPE=]FILE [--llama_bench_flags="-fa 1"]] ...

Models are random: ternary weights, tied embedding and head, the shapes of a 0.6B model, of BitNet b1.58 2B4T, and (only where asked for: 8 GB) of
Qwen3-30B-A3B, a mixture of 128 experts, 8 a token. Of the first two llama.cpp gets the
same weights as GGUF (TQ2_0, embedding and head Q8_0) where `llama-cpp-python` and `gguf` are installed. Any llama-bench with a model of its own
is measured in the same rounds by `--llama_bench`. Every system lives in a process of its own
and waits while another is measured; rounds are interleaved, and medians are reported. Decoding starts from an empty context, prefill
reads a prompt at once. `bytes_per_token` are the weights (and head) that a decoded token reads, without keys and values; `read_gbps` is the read
bandwidth of the same number of threads, `peak_gmacs` what the multiply-add instructions of a row's kernels do without memory, both measured in the
same rounds; `other_busy_cpus` is how many CPUs other processes kept busy meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from decode.llama_bench import add_options
from decode.models import SHAPES, gguf_bytes_per_token, write_checkpoint, write_gguf
from decode.other_load import OtherLoad

import native_library
from hf_bitdistill.ops import huge_pages


READ_BYTES = 1200 << 20  # larger than the last-level cache


def serve(connection, system, decode_tokens: int, isa: str | None) -> None:
    """A process with one system on one instruction set, by which the form of its weights is chosen: loads it, then measures whenever it is told to."""
    if isa is not None:
        os.environ["HF_BITDISTILL_ISA"] = isa
    from hf_bitdistill.evaluation.speed.speed_worker import load_runner

    start = time.perf_counter()
    runner = load_runner(system)
    connection.send({"load_seconds": time.perf_counter() - start, "bytes_per_token": runner.bytes_per_token})
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, runner.vocab_size, (system.prompt_tokens,), generator=generator).tolist()
    while connection.recv() != "stop":
        start = time.perf_counter()
        runner.prefill(prompt)
        prefill = time.perf_counter() - start
        token = runner.prefill(prompt[:1])
        start = time.perf_counter()
        for _ in range(decode_tokens):
            token = runner.step(token)
        connection.send((len(prompt) / prefill, decode_tokens / (time.perf_counter() - start)))


class Worker:
    """The other end of [`serve`]."""

    def __init__(self, system, decode_tokens: int, isa: str | None = None):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, system, decode_tokens, isa), daemon=True)
        self._process.start()
        theirs.close()
        self.about = self._connection.recv()
        self.pid = self._process.pid

    def measure(self) -> tuple[float, float]:
        """Tokens a second of prefill and of decoding."""
        self._connection.send("measure")
        return self._connection.recv()

    def stop(self) -> None:
        self._connection.send("stop")
        self._process.join(30)


class Limits:
    """What memory and arithmetic can do, by threads and instruction set."""

    def __init__(self, library):
        self._library = library
        # In large pages, as weights are: with small ones reading waits for address translation, with one thread half of the time.
        self._buffer = huge_pages.zeros(READ_BYTES).fill_(1)

    def measure(self, threads: int, isas: list[str]) -> tuple[float, dict[str, float]]:
        """Bytes a second read, and multiply-adds a second of each instruction set."""
        best = self._library.isa
        self._library.set_threads(threads)
        read = max(self._library.read_bandwidth(self._buffer.data_ptr(), READ_BYTES) for _ in range(3))
        peaks = {}
        for isa in isas:
            self._library.set_isa(isa)
            peaks[isa] = self._library.multiply_add_rate()
        self._library.set_isa(best)
        return read, peaks


def start_workers(name: str, args: argparse.Namespace, folder: Path) -> dict[tuple[str, str | None, int], Worker]:
    """By label, instruction set (`None`: another program's own) and threads."""
    from hf_bitdistill.evaluation.speed import System

    shape = SHAPES[name]
    checkpoint, gguf_file = folder / name, folder / f"{name}.gguf"
    if not checkpoint.exists():
        write_checkpoint(shape, checkpoint)
    peers = (
        not args.no_peers
        and not shape.num_experts
        and all(importlib.util.find_spec(module) for module in ("llama_cpp", "gguf"))
    )
    if peers and not gguf_file.exists():
        write_gguf(shape, checkpoint, gguf_file)
    if not peers and not args.llama_bench:
        print("no peer is measured: llama-cpp-python or gguf is not installed, or it is a mixture", file=sys.stderr)
    workers = {}
    for threads in args.threads:
        sizes = (args.prompt, args.new_tokens)
        for bits in args.head_bits:
            system = System("native", str(checkpoint), *sizes, threads=threads, head_bits=bits)
            for isa in args.isas:
                workers[f"hf-bitdistill, {bits}-bit head", isa, threads] = Worker(system, args.new_tokens, isa)
        if peers:
            system = System("llama.cpp", str(gguf_file), *sizes, threads=threads)
            worker = Worker(system, args.new_tokens)
            worker.about["bytes_per_token"] = gguf_bytes_per_token(gguf_file)
            workers["llama.cpp TQ2_0, Q8_0 head", None, threads] = worker
    return workers


def measure_shape(name: str, args: argparse.Namespace, folder: Path, limits: Limits) -> list[dict]:
    """Results of one shape, a row for each system, instruction set and number of threads."""
    from hf_bitdistill.machine.environment import processor_name

    workers = start_workers(name, args, folder)
    programs = [program for program in args.llama_bench if program.file(name)]
    load = OtherLoad([worker.pid for worker in workers.values()])
    reads = {threads: [] for threads in args.threads}
    peaks = {(isa, threads): [] for isa in args.isas for threads in args.threads}
    rates, about = {}, {}
    for round_number in range(args.rounds + 1):  # the first warms up
        for threads in args.threads:
            read, of_isas = limits.measure(threads, args.isas)
            if round_number:
                reads[threads].append(read)
                for isa, peak in of_isas.items():
                    peaks[isa, threads].append(peak)
        for key, worker in workers.items():
            rate = worker.measure()
            about[key] = worker.about
            if round_number:
                rates.setdefault(key, []).append(rate)
        for program in programs if round_number else []:
            for threads in args.threads:
                found = program.run(name, args.prompt, args.new_tokens, threads)
                key = (program.name, None, threads)
                # llama-bench counts a tied embedding twice.
                size = program.file(name).stat().st_size
                about[key] = {
                    "bytes_per_token": min(found.model_bytes, size),
                    "build": found.build,
                    "flags": " ".join(program.flags),
                }
                rates.setdefault(key, []).append((found.prefill, found.decode))
    others = load.record()
    for worker in workers.values():
        worker.stop()

    results = []
    for key, values in rates.items():
        label, isa, threads = key
        prefill, decode = (statistics.median(each) for each in zip(*values, strict=True))
        bandwidth = statistics.median(reads[threads])
        row = {
            "shape": name,
            "system": label,
            "isa": isa,
            "threads": threads,
            "decode_tps": round(decode, 2),
            "prefill_tps": round(prefill, 2),
            "bytes_per_token": about[key]["bytes_per_token"],
            "read_gbps": round(bandwidth / 1e9, 2),
            "share_of_read_bandwidth": round(decode * about[key]["bytes_per_token"] / bandwidth, 3),
            "peak_gmacs": round(statistics.median(peaks[isa, threads]) / 1e9, 1) if isa else None,
            "decode_tps_rounds": [round(d, 2) for _, d in values],
            "prefill_tps_rounds": [round(p, 2) for p, _ in values],
            "prompt_tokens": args.prompt,
            "new_tokens": args.new_tokens,
            **others,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "cpu": processor_name(),
        }
        if "load_seconds" in about[key]:
            row["load_seconds"] = round(about[key]["load_seconds"], 2)
        row |= {name: about[key][name] for name in ("build", "flags") if name in about[key]}
        results.append(row)
        print(json.dumps(row), file=sys.stderr)
    return results


def main(arguments: list[str] | None = None) -> None:
    library = native_library.load()
    supported = library.supported_isas
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["0.6B", "2B4T"], choices=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--isas",
        nargs="+",
        default=[isa for isa in supported if isa != "scalar"] or supported,
        choices=supported,
        help="instruction sets of the native decoder; default: all that this CPU can run, without plain C++",
    )
    parser.add_argument("--head_bits", type=int, nargs="+", default=[8, 4], choices=[32, 16, 8, 4])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_peers", action="store_true", help="do not measure llama-cpp-python")
    add_options(parser)
    parser.add_argument("--folder", type=Path, help="keep the random models here; default: a temporary folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)

    limits = Limits(library)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.shapes:
            results += measure_shape(name, args, args.folder or Path(temporary), limits)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
