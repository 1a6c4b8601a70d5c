"""Packed layers on a GPU: the results of the CPU, and time and memory beside a linear layer in bfloat16.

    python benchmarks/check_cuda.py --output benchmarks/results/check_cuda.json

Layers have the shapes of BitNet b1.58 2B4T, weights are random. The integer products must be those of the CPU: in float32 the results agree to
float32 rounding, in bfloat16 to that of bfloat16. Times are medians of interleaved rounds, each of several calls between two events. `compiled`
is the layer under torch.compile, which fuses the unpacking. `bfloat16` is `nn.Linear` with the effective weight, `unpack` the unpacking alone. Ends
with an error if a result is wrong. With `--device cpu` it runs anywhere, for the sake of its checks.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hf_bitdistill import BitNetConfig, ops
from hf_bitdistill.nn import BitLinear, TernaryLinear
from hf_bitdistill.quantization import quantize_table


SHAPES = [(2560, 2560), (640, 2560), (6912, 2560), (2560, 6912)]
GRANULARITIES = ("tensor", "row", "group")
HEAD = (32768, 2560)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest output


def packed_layer(rows: int, columns: int, granularity: str, dtype: torch.dtype) -> TernaryLinear:
    config = BitNetConfig(weight_granularity=granularity)
    layer = BitLinear(columns, rows, bias=False, config=config)
    return TernaryLinear.from_bit_linear(layer, config).to(dtype)


def deviation(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in units of the largest value."""
    expected = expected.float()
    return ((result.cpu().float() - expected).abs().max() / expected.abs().max()).item()


class Timer:
    """Microseconds a call on a device."""

    def __init__(self, device: torch.device, calls: int):
        self.device, self.calls = device, calls

    def __call__(self, run: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(self.calls):
                run()
            return (time.perf_counter() - start) * 1e6 / self.calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self.calls):
            run()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) * 1e3 / self.calls

    def medians(self, contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        for run in contenders.values():
            run()
        times = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                times[name].append(self(run))
        return {name: round(statistics.median(values), 2) for name, values in times.items()}


def check_layer(layer: TernaryLinear, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Deviation from the CPU of the result and of the input's gradient, the latter beside floats."""
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = layer(x)
    moved = x.to(device).requires_grad_()
    y = copy.deepcopy(layer).to(device)(moved)
    y.float().sum().backward()
    gradient = layer.dequantize().sum(dim=0).expand(7, -1)
    return {"result": deviation(y.detach(), expected), "gradient": deviation(moved.grad, gradient)}


def check_head(device: torch.device, dtype: torch.dtype, bits: int) -> float:
    generator = torch.Generator().manual_seed(2)
    codes, scale = quantize_table(torch.randn(1000, 512, generator=generator), bits)
    x = torch.randn(3, 512, generator=generator).to(dtype)
    expected = ops.stored_table_linear(x, codes, scale)
    return deviation(ops.stored_table_linear(x.to(device), codes.to(device), scale.to(device)), expected)


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int | None:
    """Memory a call takes beside what was there."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure(args: argparse.Namespace, device: torch.device, rows: int, columns: int, granularity: str) -> list[dict]:
    layer = packed_layer(rows, columns, granularity, torch.bfloat16)
    dense = nn.Linear(columns, rows, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
    dense.weight.copy_(layer.dequantize())
    layer = layer.to(device)
    torch.compiler.reset()  # (it gives up on a function that it compiled too often)
    # One granularity: compiling takes most of the time.
    compiled = torch.compile(layer, dynamic=False) if args.compile and granularity == "row" else None
    results = []
    for tokens in args.tokens:
        x = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16)
        contenders = {
            "packed": lambda x=x: layer(x),
            "unpack": lambda: layer.unpack(torch.bfloat16),
            "bfloat16": lambda x=x: dense(x),
        }
        if compiled is not None:
            contenders["compiled"] = lambda x=x: compiled(x)
        times = Timer(device, args.calls).medians(contenders, args.rounds)
        result = {
            "rows": rows,
            "columns": columns,
            "granularity": granularity,
            "tokens": tokens,
            "microseconds": times,
        }
        result["peak_bytes"] = peak_bytes(device, contenders["packed"])
        results.append(result)
        print(json.dumps(result), flush=True)
    return results


def measure_head(args: argparse.Namespace, device: torch.device, bits: int) -> dict:
    table = torch.randn(HEAD, generator=torch.Generator().manual_seed(3))
    codes, scale = (tensor.to(device) for tensor in quantize_table(table, bits))
    dense = table.to(device, torch.bfloat16)
    x = torch.randn(1, HEAD[1], device=device, dtype=torch.bfloat16)
    contenders = {
        "packed": lambda: ops.stored_table_linear(x, codes, scale),
        "bfloat16": lambda: nn.functional.linear(x, dense),
    }
    return {"bits": bits, "microseconds": Timer(device, args.calls).medians(contenders, args.rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20, help="calls a round")
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--only_checks", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    start = time.perf_counter()

    deviations, wrong = [], []
    for dtype, tolerance in TOLERANCE.items():
        for granularity in GRANULARITIES:
            layer = packed_layer(639, 2560, granularity, dtype)
            found = check_layer(layer, device, dtype)
            deviations.append({"layer": granularity, "dtype": str(dtype), **found})
            wrong += [deviations[-1]] if max(found.values()) > tolerance else []
        for bits in (8, 4):
            found = check_head(device, dtype, bits)
            deviations.append({"head_bits": bits, "dtype": str(dtype), "result": found})
            wrong += [deviations[-1]] if found > tolerance else []
    times, heads = [], []
    if not args.only_checks:
        with torch.no_grad():
            for shape in SHAPES:
                for granularity in GRANULARITIES:
                    times += measure(args, device, *shape, granularity)
            heads = [measure_head(args, device, bits) for bits in (8, 4)]

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    result = {
        "machine": {"device": name, "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
        "settings": {key: getattr(args, key) for key in ("tokens", "rounds", "calls", "compile")},
        "seconds": round(time.perf_counter() - start, 1),
        "deviations": deviations,
        "layers": times,
        "heads": heads,
    }
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        sys.exit(f"wrong on {name}: {json.dumps(wrong)}")
    print(f"{len(deviations)} checks passed on {name}.")


if __name__ == "__main__":
    main()
