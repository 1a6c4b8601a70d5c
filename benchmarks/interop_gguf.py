"""Whether llama.cpp, on the exported file, computes what the student computes here.

    python benchmarks/interop_gguf.py STUDENT --text wikitext2_test.txt --name quickstart [--type tq2_0] [--table q8_0]

STUDENT holds a packed student. It is exported, and the native decoder here is compared with llama.cpp (llama-cpp-python) on the file:

- tokens: whether llama.cpp cuts the prompts and the text into the same tokens;
- greedy continuations of 64 tokens after each of 20 prompts: at how many positions llama.cpp's most likely token is ours, given our tokens up
  to there (`agreement`), and at how many it is where each goes on with its own tokens (`free_agreement`: after the first difference the texts
  are others);
- the perplexity of both on the same tokens of the text, in windows.

Nothing is quantised alike but the weights: the student's activations are int8 with a scale a token, llama.cpp's with a scale for 256 or 32 values of
it. Writes gguf_NAME_TYPE.json into `--results`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from check_decoder import PROMPTS
from transformers import AutoTokenizer

from hf_bitdistill.export import ExportedFile, export_gguf
from hf_bitdistill.machine.environment import describe_environment
from optimum.bitnet import BitNetModelForCausalLM


class Ours:
    """The native decoder on the student."""

    def __init__(self, folder: str):
        self.model = BitNetModelForCausalLM.from_pretrained(folder)
        if self.model.backend != "native":
            raise SystemExit(f"the native decoder is not in use: {self.model.backend}")
        self.positions = self.model.config.max_position_embeddings

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> np.ndarray:
        """`[tokens, vocabulary]`."""
        return self.model(torch.tensor([tokens])).logits[0].float().numpy()

    def greedy(self, prompt: list[int], new_tokens: int, ends: list[int]) -> list[int]:
        """The most likely continuation, that never ends."""
        output = self.model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=new_tokens,
            suppress_tokens=ends,
            eos_token_id=None,
            pad_token_id=0,
        )
        return output[0, len(prompt) :].tolist()


class LlamaCpp:
    """llama.cpp on a file."""

    def __init__(self, file: Path, context: int, threads: int):
        from llama_cpp import Llama

        self.model = Llama(
            str(file),
            n_ctx=context,
            n_batch=context,
            logits_all=True,
            verbose=False,
            n_threads=threads,
            n_threads_batch=threads,
        )

    def logits(self, tokens: list[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(tokens)
        return self.model.scores[: len(tokens)]

    def greedy(self, prompt: list[int], new_tokens: int, ends: list[int]) -> list[int]:
        """As [`Ours.greedy`]."""
        tokens = [best(self.logits(prompt)[-1:], ends)[0]]
        while len(tokens) < new_tokens:
            self.model.eval(tokens[-1:])
            tokens.append(best(self.model.scores[self.model.n_tokens - 1 : self.model.n_tokens], ends)[0])
        return tokens

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=False, special=False)


def best(logits: np.ndarray, ends: list[int]) -> list[int]:
    """The most likely token of each position, none of `ends`."""
    logits = logits.copy()
    logits[:, ends] = -np.inf
    return logits.argmax(-1).tolist()


def perplexity(system: Ours | LlamaCpp, windows: list[list[int]]) -> float:
    total, count = 0.0, 0
    for window in windows:
        scores = torch.from_numpy(system.logits(window)[:-1].astype(np.float64)).log_softmax(-1)
        total -= scores.gather(1, torch.tensor(window[1:])[:, None]).sum().item()
        count += len(window) - 1
    return math.exp(total / count)


def compare(
    ours: Ours, theirs: LlamaCpp, prompts: list[list[int]], new_tokens: int, ends: list[int], windows: list[list[int]]
) -> dict[str, float | int | list]:
    agree, free, first_differences = 0, 0, []
    for prompt in prompts:
        wanted = ours.greedy(prompt, new_tokens, ends)
        found = best(theirs.logits([*prompt, *wanted])[len(prompt) - 1 : -1], ends)
        agree += sum(a == b for a, b in zip(wanted, found, strict=True))
        alone = theirs.greedy(prompt, new_tokens, ends)
        free += sum(a == b for a, b in zip(wanted, alone, strict=True))
        first_differences.append(
            next((at for at, (a, b) in enumerate(zip(wanted, alone, strict=True)) if a != b), None)
        )
    positions = len(prompts) * new_tokens
    mine, other = perplexity(ours, windows), perplexity(theirs, windows)
    return {
        "prompts": len(prompts),
        "new_tokens": new_tokens,
        "agreement": agree / positions,
        "free_agreement": free / positions,
        "first_differences": first_differences,
        "perplexity_tokens": sum(len(window) - 1 for window in windows),
        "window": len(windows[0]),
        "perplexity": mine,
        "perplexity_llama_cpp": other,
        "perplexity_difference": other / mine - 1,
    }


def describe(result: ExportedFile) -> dict[str, object]:
    return {
        "architecture": result.architecture,
        "bytes": result.size,
        "types": [
            {"type": kind, "tensors": count, "bytes": size, "because": why} for kind, count, size, why in result.types
        ],
        "largest_scale_error": result.scale_error,
        "notes": result.notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder or Hub id of a packed student")
    parser.add_argument("--text", type=Path, required=True, help="plain text for the perplexity")
    parser.add_argument("--name", required=True, help="of the model, and of the file with the results")
    parser.add_argument("--type", default="tq2_0")
    parser.add_argument("--table", default="q8_0")
    parser.add_argument("--no_q2_0", action="store_true", help="Q4_0 in place of Q2_0")
    parser.add_argument("--tokens", type=int, default=16384, help="of the text")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "interop")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.student)
    text = options.text.read_text(encoding="utf-8")[: 8 * options.tokens]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: options.tokens]
    ours = Ours(options.student)
    window = min(options.window, ours.positions)
    windows = [tokens[at : at + window] for at in range(0, len(tokens) - window + 1, window)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.gguf"
        exported = export_gguf(options.student, file, options.type, options.table, allow_q2_0=not options.no_q2_0)
        theirs = LlamaCpp(exported.path, max(window, 256), torch.get_num_threads())
        texts = [*PROMPTS, *(line for line in text.splitlines()[:400] if line.strip())]
        same = [theirs.tokenize(each) == tokenizer(each, add_special_tokens=False)["input_ids"] for each in texts]
        # As each program would begin a text.
        prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[: options.prompts]]
        ends = sorted({tokenizer.eos_token_id, theirs.model.token_eos()})
        found = compare(ours, theirs, prompts, options.new_tokens, ends, windows)
    result = {
        "model": options.name,
        "environment": {**describe_environment(), "llama_cpp_python": importlib.metadata.version("llama-cpp-python")},
        "file": describe(exported),
        "texts": len(texts),
        "texts_with_the_same_tokens": sum(same),
        **found,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    print(text)
    (options.results / f"gguf_{options.name}_{options.type}{'_no_q2_0' if options.no_q2_0 else ''}.json").write_text(
        text + "\n"
    )


if __name__ == "__main__":
    main()
