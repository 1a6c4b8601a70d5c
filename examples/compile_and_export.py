"""A packed student under torch.compile, and as a program of torch.export that runs without transformers' modelling code.

python examples/compile_and_export.py packed/ student.pt2
"""

from __future__ import annotations

import argparse

import torch
from torch.export import Dim
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_bitdistill  # noqa: F401 (registers the quantizer, and the operators that a saved program calls)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder or Hub id of a packed student")
    parser.add_argument("program", help="file to write")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--max_new_tokens", type=int, default=16)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.student)
    model = AutoModelForCausalLM.from_pretrained(options.student).eval()
    tokens = tokenizer(options.prompt, return_tensors="pt")["input_ids"]
    expected = model(input_ids=tokens, use_cache=False).logits

    compiled = torch.compile(model, fullgraph=True, backend=options.backend)
    logits = compiled(input_ids=tokens, use_cache=False).logits
    print(f"compiled: largest difference {(logits - expected).abs().max():.2g}")

    # For any batch and any length. The program holds packed weights alone.
    program = torch.export.export(
        model,
        (),
        {"input_ids": torch.cat([tokens, tokens]), "use_cache": False},
        dynamic_shapes={"input_ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "use_cache": None},
    )
    torch.export.save(program, options.program)

    forward = torch.export.load(options.program).module()
    logits = forward(input_ids=tokens, use_cache=False).logits
    print(f"exported: largest difference {(logits - expected).abs().max():.2g}")
    for _ in range(options.max_new_tokens):  # (without a cache: each step reads the whole text)
        tokens = torch.cat([tokens, forward(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    print(tokenizer.decode(tokens[0]))


if __name__ == "__main__":
    main()
