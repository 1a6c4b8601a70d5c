"""Soak test of `generate` on the native decoder: several threads on the same models, for as long as it is told.

    python benchmarks/soak.py --minutes 60                      # random tiny students of several families
    python benchmarks/soak.py --minutes 60 --model PACKED_MODEL
    python benchmarks/soak.py --minutes 0.05                    # the short mode, which the test suite runs

Every thread takes cases at random: greedy decoding of one text, of batches padded on either side, with prompt lookup, beams, and sampling with a fixed
seed; each with a random number of threads in the library. Each result is compared with a reference that was computed alone, before the threads
started: for greedy decoding, in whichever way, that of each text by itself without any aid. Nothing may differ, and memory must stay flat: the command
ends with exit code 1 at the first deviation, and if the memory of the process grew by more than `--memory_mb` between the first and the last third
of the time. Sampling cases take turns, because all threads share torch's random numbers.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


FAMILIES = ("llama", "gemma2", "qwen3_moe")
LENGTHS = (3, 21, 9, 40, 14)  # tokens of the texts
NEW_TOKENS = 12
SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


class Deviation(Exception):
    """A result is not its reference."""


@dataclass(frozen=True)
class Case:
    """One thing to do over and over: `run()` gives new tokens `[B, n]`, which must be `expected`."""

    name: str
    run: Callable[[], Tensor]
    expected: Tensor
    takes_turns: bool = False

    def check(self) -> None:
        """
        Raises:
            Deviation: with both results.
        """
        got = self.run()
        if not torch.equal(got, self.expected):
            raise Deviation(f"{self.name}: got {got.tolist()}, alone it was {self.expected.tolist()}")


# ---- Models and cases ------------------------------------------------------------------------------------------------


def random_model(family: str, folder: Path):
    """A packed random student on the native decoder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from hf_bitdistill import BitNetConfig, apply_bitnet, pack
    from optimum.bitnet import BitNetModelForCausalLM

    sizes = dict(SIZES)
    if family == "gemma2":
        sizes |= {"head_dim": 16, "sliding_window": 16}
    if family == "qwen3_moe":
        sizes |= {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    torch.manual_seed(0)
    student = apply_bitnet(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)), BitNetConfig())
    pack(student.eval()).save_pretrained(folder / family)
    return BitNetModelForCausalLM.from_pretrained(folder / family)


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Tokens and mask `[B, T]`."""
    width = max(len(row) for row in rows)
    tokens, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[number, columns], mask[number, columns] = row, 1
    return tokens, mask


def make_cases(name: str, model) -> list[Case]:
    """The cases of a model, with their references."""
    vocabulary = model.decoder.spec.vocab_size
    generator = torch.Generator().manual_seed(1)
    # Random tokens that repeat, so that prompt lookup finds something.
    texts = [torch.randint(3, vocabulary, (n // 2 + 1,), generator=generator).repeat(2)[:n] for n in LENGTHS]

    def generate(tokens: Tensor, seed: int | None = None, **options) -> Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        options = {
            "max_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
            **options,
        }
        return model.generate(tokens, **options)[:, tokens.shape[1] :]

    model.decoder.num_threads = 1
    alone = torch.cat([generate(text[None]) for text in texts])
    cases = []
    for number, text in enumerate(texts):
        cases.append(Case(f"{name}, greedy, text {number}", lambda t=text: generate(t[None]), alone[number, None]))
        cases.append(
            Case(
                f"{name}, prompt lookup, text {number}",
                lambda t=text: generate(t[None], prompt_lookup_num_tokens=4),
                alone[number, None],
            )
        )
    for side in ("left", "right"):
        for chosen in ((0, 1, 2, 3, 4), (3, 0), (2, 4, 4)):
            tokens, mask = padded([texts[i] for i in chosen], side)
            cases.append(
                Case(
                    f"{name}, texts {chosen} padded on the {side}",
                    lambda t=tokens, m=mask: generate(t, attention_mask=m),
                    alone[list(chosen)],
                )
            )
    tokens, mask = padded(texts[:3], "left")
    beams = {"attention_mask": mask, "num_beams": 3}
    sampled = {"attention_mask": mask, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 3}
    for kind, options in (("beams", beams), ("sampling", sampled)):

        def run(options=options) -> Tensor:
            return generate(tokens, **options)

        cases.append(Case(f"{name}, {kind}", run, run(), takes_turns=kind == "sampling"))
    return cases


# ---- Running ---------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096


def soak(models: dict[str, object], seconds: float, threads: int, seed: int = 0) -> dict:
    """Run all cases at random for some time.

    Returns:
        `results` (number compared, by kind), `deviations` (messages), `memory_growth_mb`.
    """
    cases = [(model, case) for name, model in models.items() for case in make_cases(name, model)]
    done: Counter[str] = Counter()
    deviations: list[str] = []
    turns, stop = threading.Lock(), threading.Event()

    def work(number: int) -> None:
        choice = random.Random(f"{seed} {number}")
        while not stop.is_set():
            model, case = choice.choice(cases)
            model.decoder.num_threads = choice.choice((1, 2, 3))  # for whichever call comes next
            try:
                if case.takes_turns:
                    with turns:
                        case.check()
                else:
                    case.check()
            except Exception as error:  # whatever it is, it was no error alone
                deviations.append(f"{case.name}: {type(error).__name__}: {error}")
                stop.set()
            done[case.name.split(", ")[1].split(" (")[0]] += 1

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
    start = time.monotonic()
    for worker in workers:
        worker.start()
    memory = []
    while not stop.wait(min(1.0, seconds / 30)) and time.monotonic() - start < seconds:
        memory.append(resident_bytes())
    stop.set()
    for worker in workers:
        worker.join()
    third = max(1, len(memory) // 3)
    growth = max(memory[-third:], default=0) - max(memory[:third], default=0)
    return {"results": dict(done), "deviations": deviations, "memory_growth_mb": round(growth / 2**20, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=4, help="Python threads")
    parser.add_argument("--model", help="a packed model; default: random ones")
    parser.add_argument("--memory_mb", type=float, default=16, help="growth of memory that is let pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    from optimum.bitnet import BitNetModelForCausalLM

    if args.model:
        models = {"model": BitNetModelForCausalLM.from_pretrained(args.model)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            models = {family: random_model(family, Path(folder)) for family in FAMILIES}
    for name, model in models.items():
        if model.backend != "native":
            raise SystemExit(f"{name} does not run on the native decoder")
    result = {"minutes": args.minutes, "threads": args.threads}
    result |= soak(models, 60 * args.minutes, args.threads, args.seed)
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    if result["deviations"]:
        raise SystemExit("a result differs from what was computed alone")
    if result["memory_growth_mb"] > args.memory_mb:
        raise SystemExit(f"memory grew by {result['memory_growth_mb']} MB")


if __name__ == "__main__":
    main()
