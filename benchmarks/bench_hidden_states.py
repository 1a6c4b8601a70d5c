"""How large a model's hidden states are, by layer: of the first token, on which attention often rests, and of the others;
and which projections of the first model write such states.

python benchmarks/bench_hidden_states.py --models FULL_PRECISION STUDENT --names full student --corpus DATA/corpus --output ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill import find_massive_projections
from hf_bitdistill.data import load_corpus, pack_corpus
from hf_bitdistill.machine.environment import describe_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, nargs="+", help="folders; the first one's tokenizer is used")
    parser.add_argument("--names", required=True, nargs="+", help="how the result calls them")
    parser.add_argument("--corpus", required=True, help="folder with validation text")
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if len(options.models) != len(options.names):
        parser.error("--names must name every model")

    tokenizer = AutoTokenizer.from_pretrained(options.models[0])
    blocks = pack_corpus(load_corpus(options.corpus, "validation"), tokenizer, options.block_size)
    input_ids = torch.tensor(list(blocks[: options.blocks]["input_ids"]))
    rows = {}
    for name, folder in zip(options.names, options.models, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            states = model(input_ids, output_hidden_states=True).hidden_states
        if not rows:
            massive = find_massive_projections(model, [{"input_ids": input_ids}])
            print("massive projections:", massive, flush=True)
        norms = [state.norm(dim=-1) for state in states]
        rows[name] = {
            "first_token": [round(norm[:, 0].median().item(), 1) for norm in norms],
            "other_tokens": [round(norm[:, 1:].median().item(), 1) for norm in norms],
        }
        print(name, rows[name], flush=True)
    settings = {"block_size": options.block_size, "blocks": options.blocks, "statistic": "median of Euclidean norms"}
    result = {"settings": settings, "machine": describe_environment(), "massive_projections": massive, "layers": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
