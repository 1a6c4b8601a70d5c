"""Speed of a whole packed model through transformers (module path) against the same model in float32 and bfloat16.

Decoding: greedy `generate`, one sequence, after a prompt of 16 tokens, from the first new token to the last. Prefill: one forward over a
prompt. Rounds are interleaved, medians are reported, and ratios are of medians within this run. Ternary weights are those of
the model, ternarised without training: speed does not depend on their values. `packed` keeps embedding and output head in
float32, `packed_int8_head` has them in 8 bits (`quantize_head`).

    python benchmarks/bench_modules.py --model MODEL_FOLDER --name SmolLM2-135M --output benchmarks/results/NAME.json
    python benchmarks/bench_modules.py --random-0.6b --name random-0.6B --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from clocks import TokenClock
from decode.models import SHAPES
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hf_bitdistill import apply_bitnet, ops, pack, quantize_head
from hf_bitdistill.machine.environment import describe_environment


def load(options: argparse.Namespace) -> PreTrainedModel:
    if options.model:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPES["0.6B"].config(), dtype=torch.float32)


def contenders(full: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The models to compare. Never more than one extra float32 copy at a time."""
    packed = pack(apply_bitnet(copy.deepcopy(full)), inplace=True)
    return {
        "float32": full,
        "bfloat16": copy.deepcopy(full).to(torch.bfloat16),
        "packed": packed,
        "packed_int8_head": quantize_head(copy.deepcopy(packed), 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder of a full-precision model")
    source.add_argument("--random-0.6b", dest="random", action="store_true", help="a random Llama of 0.6B")
    parser.add_argument("--name", required=True, help="how the result calls the model")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    if options.new_tokens < 2:
        parser.error("--new-tokens must be at least 2")
    models = contenders(load(options).eval())
    vocabulary = models["float32"].config.vocab_size
    tokens = torch.randint(3, vocabulary, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    start = torch.randint(3, vocabulary, (1, 16), generator=torch.Generator().manual_seed(1))
    settings = GenerationConfig(do_sample=False, max_new_tokens=options.new_tokens, eos_token_id=None, pad_token_id=0)
    for model in models.values():
        model.generation_config.eos_token_id = None

    def decode(model: PreTrainedModel) -> float:
        clock = TokenClock()
        model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), generation_config=settings, streamer=clock
        )
        return clock.seconds_a_token

    def prefill(model: PreTrainedModel) -> float:
        begin = time.perf_counter()
        model(input_ids=tokens, logits_to_keep=1)
        return (time.perf_counter() - begin) / options.prompt

    measures = {"decode": decode, "prefill": prefill}
    rows = []
    with torch.inference_mode():
        for threads in options.threads:
            torch.set_num_threads(threads)
            times: dict[tuple[str, str], list[float]] = {}
            for measured in [False] + [True] * options.rounds:  # the first round warms up
                for name, model in models.items():
                    for what, measure in measures.items():
                        duration = measure(model)
                        if measured:
                            times.setdefault((name, what), []).append(duration)
            rates = {key: 1 / statistics.median(values) for key, values in times.items()}
            for name in models:
                row = {"model": name, "threads": threads}
                for what in measures:
                    row[f"{what}_tps"] = round(rates[name, what], 2)
                    for packed in ("packed", "packed_int8_head"):
                        row[f"{packed}_over_this_{what}"] = round(rates[packed, what] / rates[name, what], 2)
                rows.append(row)
                print(row, flush=True)
    result = {
        "model": options.name,
        "settings": {"prompt": options.prompt, "new_tokens": options.new_tokens, "rounds": options.rounds},
        "machine": describe_environment(),
        "native": {key: value for key, value in ops.status().items() if key != "path"},
        "peak_rss_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
