"""Memory of a warm start whose models lie elsewhere than where it computes, by depth, window, and where the hidden states wait.

A random Llama of the given shape, its weights mapped from files. Each row is measured in a process of its own:

- with an accelerator: the most bytes that torch had on it at once, and anonymous memory of the process;
- on a CPU alone: what would be brought to a device is copied; anonymous memory of the process (`RssAnon`: weights that are mapped from files do
  not count) is that of the device and that of the hidden states together. It is sampled every ten milliseconds.

    python benchmarks/bench_warm_start_memory.py --layers 6 24 --windows 2 4 --output benchmarks/results/FILE.json
    python benchmarks/bench_warm_start_memory.py --layers 32 --windows 4 --hidden_size 4096 --intermediate_size 11008 --vocab_size 32000 \
        --heads 32 --bf16 --batches 64 --batch_size 4 --length 1024 --rank 64 --where disk
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_bitdistill import BitNetConfig, WarmStartConfig, apply_bitnet
from hf_bitdistill.machine.environment import default_device, describe_environment
from hf_bitdistill.pages.tables import markdown_table
from hf_bitdistill.training.warm_start import residents, warm_start


def anonymous_memory() -> int:
    """Bytes of this process that no file stands behind."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


class Sampler(threading.Thread):
    """The largest anonymous memory while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.peak = max(self.peak, anonymous_memory())
            time.sleep(0.01)


def map_weights(model: torch.nn.Module, folder: Path, name: str) -> None:
    """Put the weights of the layers into one file each, whose pages hold what is written."""
    for index, parameter in enumerate(model.parameters()):
        values = torch.from_file(
            str(folder / f"{name}-{index}"), shared=True, size=parameter.numel(), dtype=parameter.dtype
        )
        values.view(parameter.shape).copy_(parameter.data)
        parameter.data = values.view(parameter.shape)


def llama_config(hidden: int, intermediate: int, words: int, layers: int, heads: int, length: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=words,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(0)
    config = llama_config(
        options.hidden_size,
        options.intermediate_size,
        options.vocab_size,
        options.layers[0],
        options.heads,
        options.length,
    )
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    device = default_device()
    if device.type == "cpu":
        residents.lies_on = lambda tensor, device: False
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, options.length)
    batches = [
        {"input_ids": torch.randint(0, options.vocab_size, shape, generator=generator)} for _ in range(options.batches)
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        models = []
        for name in ("teacher", "student"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            if name == "student":
                model = apply_bitnet(model, BitNetConfig())
            map_weights(model, Path(folder), name)
            models.append(model)
        teacher, student = models
        window = options.windows[0]
        start = WarmStartConfig(
            window_layers=window, window_stride=window, steps_per_window=options.steps, rank=options.rank
        )
        before = anonymous_memory()
        sampler = Sampler()
        sampler.start()
        started = time.perf_counter()
        warm_start(
            student, teacher, batches, start, device=device, hidden_states=options.where[0], scratch=Path(folder)
        )
        seconds = time.perf_counter() - started
        sampler.ended.set()
        sampler.join()
    result = {"process": sampler.peak - before, "seconds": seconds}
    if device.type == "cuda":
        result["device"] = torch.cuda.max_memory_allocated()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--where", nargs="+", default=["disk", "memory"], choices=["disk", "memory"])
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--intermediate_size", type=int, default=704)
    parser.add_argument("--vocab_size", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="a window")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 weights")
    parser.add_argument("--folder", help="for mapped weights and hidden states")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)), flush=True)
        return
    # What is freed goes back at once: memory that an allocator keeps for later would be counted as taken.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_ARENA_MAX": "1",
    }
    results = []
    for layers in options.layers:
        for window in options.windows:
            for where in options.where:
                command = [sys.executable, __file__, *sys.argv[1:], "--one"]
                command += ["--layers", str(layers), "--windows", str(window), "--where", where]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
                results.append(
                    {"layers": layers, "window": window, "where": where, **json.loads(output.splitlines()[-1])}
                )
                print(results[-1], flush=True)
    kinds = [kind for kind in ("device", "process") if kind in results[0]]
    rows = [
        [
            str(row["layers"]),
            str(row["window"]),
            row["where"],
            *(f"{row[kind] / 1e6:.0f}" for kind in kinds),
            f"{row['seconds']:.0f}",
        ]
        for row in results
    ]
    table = markdown_table(["layers", "window", "hidden states", *(f"{kind}, MB" for kind in kinds), "seconds"], rows)
    print(table)
    if options.output:
        settings = {key: value for key, value in vars(options).items() if key not in ("output", "folder", "one")}
        content = {"settings": settings, "machine": describe_environment(), "results": results}
        options.output.write_text(json.dumps(content, indent=2) + "\n")
        options.output.with_suffix(".md").write_text(f"# Memory of a warm start out of core\n\n{table}\n")


if __name__ == "__main__":
    main()
