"""What `generate` of transformers costs around the native decoder, per token.

    python benchmarks/bench_generate.py [--shapes 0.6B] [--threads 2] --output benchmarks/results/generate.json

Models are those of `bench_decode.py`. Four ways to decode the same number of tokens after a prompt of one token, rounds interleaved, medians
reported: `decoder`, the bare `NativeDecoder.forward` and an argmax; `forward`, the model's `forward` and an argmax; `greedy` and `sampling`
(temperature 0.7, top-k 50, top-p 0.9), `generate` from the first new token to the last. `overhead` is the time a token beyond that of `decoder`,
as a share of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from clocks import TokenClock
from decode.models import SHAPES, write_checkpoint
from transformers import GenerationConfig

from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.modeling.cache_name import CACHE_NAME
from optimum.bitnet import BitNetModelForCausalLM


SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9}


def ways(model: BitNetModelForCausalLM, new_tokens: int) -> dict[str, Callable[[], float]]:
    """Seconds a token of each way to decode `new_tokens` tokens after the first new one."""
    prompt = torch.tensor([[1]])

    def decoder() -> float:
        cache = model.decoder.new_cache(1)
        zero = torch.zeros(1, dtype=torch.int64)
        token = model.decoder.forward(cache, prompt[0], zero, zero).argmax(dim=-1)
        start = time.perf_counter()
        for _ in range(new_tokens):
            token = model.decoder.forward(cache, token, zero, zero).argmax(dim=-1)
        return (time.perf_counter() - start) / new_tokens

    def forward() -> float:
        output = model(prompt, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(new_tokens):
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            output = model(token, logits_to_keep=1, cache=output[CACHE_NAME])
        return (time.perf_counter() - start) / new_tokens

    def generate(**settings) -> float:
        config = GenerationConfig(
            max_new_tokens=new_tokens + 1, min_new_tokens=None, eos_token_id=None, pad_token_id=0, **settings
        )
        clock = TokenClock()
        model.generate(prompt, generation_config=config, streamer=clock)
        return clock.seconds_a_token

    return {
        "decoder": decoder,
        "forward": forward,
        "greedy": lambda: generate(do_sample=False),
        "sampling": lambda: generate(**SAMPLING),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["0.6B"], choices=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--head_bits", type=int, default=8, choices=[32, 16, 8, 4])
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the random models here; default: a temporary folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.new_tokens < 1 or args.rounds < 1:
        parser.error("--new_tokens and --rounds must be at least 1")

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for shape in args.shapes:
            folder = (args.folder or Path(temporary)) / shape
            if not folder.exists():
                write_checkpoint(SHAPES[shape], folder)
            model = BitNetModelForCausalLM.from_pretrained(folder, head_bits=args.head_bits)
            model.generation_config.eos_token_id = None
            measures = ways(model, args.new_tokens)
            for threads in args.threads:
                torch.set_num_threads(threads)
                times: dict[str, list[float]] = {name: [] for name in measures}
                for number in range(args.rounds + 1):
                    for name, measure in measures.items():
                        seconds = measure()
                        if number:  # the first warms up
                            times[name].append(seconds)
                bare = statistics.median(times["decoder"])
                for name, values in times.items():
                    seconds = statistics.median(values)
                    rows.append(
                        {
                            "shape": shape,
                            "threads": threads,
                            "way": name,
                            "milliseconds_per_token": round(1e3 * seconds, 3),
                            "overhead": round(seconds / bare - 1, 4),
                            "milliseconds_per_token_rounds": [round(1e3 * value, 3) for value in values],
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
    result = {
        "settings": {"new_tokens": args.new_tokens, "rounds": args.rounds, "head_bits": args.head_bits},
        "sampling": SAMPLING,
        "machine": describe_environment(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
