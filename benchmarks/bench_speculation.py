"""What prompt lookup is worth: tokens a second with and without it, on texts of a file, and what reading several tokens costs.

    python benchmarks/bench_speculation.py --model PACKED --name NAME --texts ARTICLES.jsonl.gz --field document [--template "{}\\nSummary:"] [--chat]
        [--written_by MODEL] --output benchmarks/results/speculation.json

Every text is continued greedily, `new_tokens` tokens, without prompt lookup, with several fixed numbers of candidates, and with
`num_assistant_tokens_schedule="heuristic"`, where the number follows what was accepted; ways take turns for each text, and tokens a second are those
after the first pass. The tokens must be the same in all ways. `tokens_per_read` is how many tokens a pass through the weights gave, `accepted` the share
of candidates that were right. With `--written_by` every way writes what another model of the same vocabulary does (greedily, in transformers, up to its
end of text): how many guesses are right is that model's, the time is the student's. So a short training, whose student repeats itself, does not flatter
the guesses. `verification` is what reading n tokens at once costs, all logits wanted, in times of one token.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from clocks import TokenClock
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from hf_bitdistill.machine.environment import describe_environment
from optimum.bitnet import BitNetModelForCausalLM


WAYS = {
    "none": {},
    **{f"lookup {count}": {"prompt_lookup_num_tokens": count} for count in (3, 5, 10)},
    "lookup 10, heuristic": {"prompt_lookup_num_tokens": 10, "num_assistant_tokens_schedule": "heuristic"},
}


class Counter:
    """Calls of a decoder's `forward` after the first, and tokens that they read."""

    def __init__(self, decoder):
        self._forward, self.calls, self.tokens, self._is_prompt = decoder.forward, 0, 0, True
        decoder.forward = self

    def __call__(self, cache, tokens, *args, **kwargs):
        if not self._is_prompt:
            self.calls += 1
            self.tokens += tokens.numel()
        self._is_prompt = False
        return self._forward(cache, tokens, *args, **kwargs)

    def start(self) -> None:
        """Before a prompt."""
        self.calls, self.tokens, self._is_prompt = 0, 0, True


class Written(LogitsProcessor):
    """Has tokens written in their order.

    Args:
        tokens: the next ones.
        start: how many stand before them.
    """

    # (Not by leaving out all others: candidates that cannot be chosen would not be tried.)
    _ABOVE_ALL = 1e4

    def __init__(self, tokens: list[int], start: int):
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self._start
        if place < len(self._tokens):
            scores = scores.clone()
            scores[:, self._tokens[place]] = self._ABOVE_ALL
        return scores


def written_by(folder: Path, prompts: list[torch.Tensor], new_tokens: int) -> list[list[int]]:
    """What a model in full precision writes after prompts, to the end of the text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    texts = [
        model.generate(ids, max_new_tokens=new_tokens, do_sample=False, attention_mask=torch.ones_like(ids))
        for ids in prompts
    ]
    return [text[0, ids.shape[1] :].tolist() for text, ids in zip(texts, prompts, strict=True)]


def read_texts(file: Path, field: str, count: int) -> list[str]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)[field] for line in islice(lines, count)]


def verification(model: BitNetModelForCausalLM, counts: range, rounds: int) -> dict[int, float]:
    """Least seconds of reading n tokens, behind 64 others."""
    decoder = model.decoder
    cache, zeros = decoder.new_cache(1), torch.zeros(64, dtype=torch.int64)
    tokens = torch.randint(0, decoder.spec.vocab_size, (64,), generator=torch.Generator().manual_seed(0))
    decoder.forward(cache, tokens, zeros, torch.tensor([63]))
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(rounds):
        for count in counts:
            start = time.perf_counter()
            decoder.forward(cache, tokens[:count], zeros[:count], torch.arange(count))
            best[count] = min(best[count], time.perf_counter() - start)
            cache.truncate(0, 64)
    return best


def prompt_of(tokenizer, args: argparse.Namespace, text: str, room: int) -> torch.Tensor:
    """Ids [1, at most `room`]: the text is cut off, not what stands around it."""

    def ids(text: str) -> list[int]:
        filled = args.template.format(text)
        if args.chat:
            messages = [{"role": "user", "content": filled}]
            filled = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(filled, add_special_tokens=not args.chat).input_ids

    cut = tokenizer.decode(tokenizer(text).input_ids[: room - len(ids(""))], skip_special_tokens=True)
    return torch.tensor([ids(cut)[:room]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the model, for the record")
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines, gzipped or not")
    parser.add_argument("--field", default="document")
    parser.add_argument("--template", default="{}\nSummary:")
    parser.add_argument(
        "--chat", action="store_true", help="put the filled template into the tokenizer's chat template"
    )
    parser.add_argument("--written_by", type=Path, help="a model whose texts every way writes")
    parser.add_argument("--count", type=int, default=20, help="texts")
    parser.add_argument("--prompt_tokens", type=int, default=768, help="the text is cut off there")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--head_bits", type=int, default=8, choices=[32, 16, 8, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = BitNetModelForCausalLM.from_pretrained(args.model, head_bits=args.head_bits)
    room = min(args.prompt_tokens, model.decoder.spec.max_positions - args.new_tokens - 16)
    texts = read_texts(args.texts, args.field, args.count)
    prompts = [prompt_of(tokenizer, args, text, room) for text in texts]
    given = written_by(args.written_by, prompts, args.new_tokens) if args.written_by else [None] * len(prompts)
    costs = verification(model, range(1, 10), rounds=60)

    counter, found = Counter(model.decoder), {way: [0.0, 0, 0, 0] for way in WAYS}
    for prompt, expected in zip(prompts, given, strict=True):
        written = LogitsProcessorList([Written(expected, prompt.shape[1])] if expected else [])
        for way, options in WAYS.items():
            config = GenerationConfig(
                max_new_tokens=len(expected) if args.written_by else args.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **options,
            )
            clock = TokenClock()
            counter.start()
            ids = model.generate(prompt, generation_config=config, streamer=clock, logits_processor=written)
            ids = ids[0, prompt.shape[1] :].tolist()
            expected = expected or ids
            if ids != expected:
                raise SystemExit(f"{way} gives other tokens")
            for place, value in enumerate((clock.seconds, clock.tokens, counter.calls, counter.tokens)):
                found[way][place] += value
    rows = []
    for way, (seconds, tokens, calls, read) in found.items():
        candidates = read - calls
        rows.append(
            {
                "way": way,
                "tokens_per_second": round(tokens / seconds, 2),
                "tokens_per_read": round(tokens / calls, 3),
                "candidates": candidates,
                "accepted": round((tokens - calls) / candidates, 3) if candidates else None,
                "against_none": round(tokens / seconds / (found["none"][1] / found["none"][0]), 3),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    result = {
        "settings": {
            name: value.name if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name not in ("model", "output")
        },
        "new_tokens": found["none"][1],
        "verification": {count: round(seconds / costs[1], 3) for count, seconds in costs.items()},
        "rows": rows,
        "load_average": round(os.getloadavg()[0], 1),
        "machine": describe_environment(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
