"""An 8-bit output head in two parts against the whole one: the same greedy tokens, what is read, and the time a token takes.

    python benchmarks/bench_head.py PACKED --texts corpus.txt --output benchmarks/results/head.json

Prompts are stretches of the texts. Each is continued greedily by parts; then one pass over the whole text, with all logits, says which token the
8-bit head chooses at every place (a row of logits does not depend on how the text is cut): `different_tokens` counts the disagreements. `rows_read`
is the share of the vocabulary that the second part was read for. Times: the decoder alone, rounds interleaved, the least and the median of them;
`whole` reads the 8-bit head, `parts` the first part and what is needed of the second, `bits4` a 4-bit head.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from hf_bitdistill.machine.environment import describe_environment
from optimum.bitnet import BitNetModelForCausalLM


_ZERO = torch.zeros(1, dtype=torch.int64)


def steps(decoder, prompt: torch.Tensor, count: int, greatest: bool) -> tuple[list[int], list[float], float]:
    """Greedy tokens, the share of finite logits at each step, and seconds a token without the prompt."""
    cache = decoder.new_cache(1)
    sequences = torch.zeros_like(prompt)
    logits = decoder.forward(cache, prompt, sequences, torch.tensor([len(prompt) - 1]), greatest=greatest)
    tokens, shares, seconds = [], [], 0.0
    for number in range(count):
        shares.append(torch.isfinite(logits).double().mean().item())
        start = time.perf_counter()
        token = logits.argmax(dim=-1)
        tokens.append(int(token))
        if number + 1 < count:
            logits = decoder.forward(cache, token, _ZERO, _ZERO, greatest=greatest)
            seconds += time.perf_counter() - start
    return tokens, shares, seconds / max(1, count - 1)


def different(decoder, prompt: torch.Tensor, tokens: list[int]) -> int:
    """How many of the tokens are not what the whole head chooses after those before them."""
    text = torch.cat([prompt, torch.tensor(tokens[:-1], dtype=torch.int64)])
    index = torch.arange(len(prompt) - 1, len(text))
    logits = decoder.forward(decoder.new_cache(1), text, torch.zeros_like(text), index)
    return int((logits.argmax(dim=-1) != torch.tensor(tokens)).sum())


def speed(decoders, prompt: torch.Tensor, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a token of `name -> (decoder, by parts)`."""
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds):
        for name, (decoder, greatest) in decoders.items():
            times[name].append(1e3 * steps(decoder, prompt, count, greatest)[2])
    return {
        name: {"least": round(min(values), 3), "median": round(statistics.median(values), 3)}
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a packed student")
    parser.add_argument("--texts", type=Path, required=True, help="a text file")
    parser.add_argument("--tokens", type=int, default=10_000, help="to compare")
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=100, help="of each prompt")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", help="of the model, for the record")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    model = BitNetModelForCausalLM.from_pretrained(args.model, head_bits=8)
    decoder = model.decoder
    four = BitNetModelForCausalLM.from_pretrained(args.model, head_bits=4).decoder
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text = torch.tensor(tokenizer(args.texts.read_text(), verbose=False).input_ids)
    prompts = -(-args.tokens // args.new_tokens)
    stride = max(1, (len(text) - args.prompt_tokens) // prompts)
    load = os.getloadavg()

    torch.set_num_threads(max(args.threads))
    compared = wrong = 0
    shares: list[float] = []
    for number in range(prompts):
        prompt = text[number * stride :][: args.prompt_tokens]
        tokens, read, _ = steps(decoder, prompt, args.new_tokens, greatest=True)
        compared += len(tokens)
        wrong += different(decoder, prompt, tokens)
        shares += read
    result = {
        "model": args.name or Path(args.model).name,
        "vocabulary": model.config.vocab_size,
        "hidden_size": model.config.hidden_size,
        "tokens": compared,
        "different_tokens": wrong,
        "rows_read": {
            "mean": round(statistics.fmean(shares), 5),
            "median": round(statistics.median(shares), 5),
            "largest_tenth": round(sorted(shares)[len(shares) * 9 // 10], 5),
        },
        "milliseconds_per_token": {},
    }
    print(json.dumps(result), flush=True)
    ways = {"whole": (decoder, False), "parts": (decoder, True), "bits4": (four, False)}
    for threads in args.threads:
        torch.set_num_threads(threads)
        result["milliseconds_per_token"][f"{threads} threads"] = speed(
            ways, text[: args.prompt_tokens], args.new_tokens, args.rounds
        )
    result["load"] = {"before": load, "after": os.getloadavg()}
    result["machine"] = describe_environment()
    result["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    print(json.dumps(result["milliseconds_per_token"]), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
