"""A packed student back in floats: how far is what it computes, and a step of training on it.

python examples/dequantize.py packed/ --text "A warm and funny film."
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_bitdistill  # noqa: F401 (registers the quantizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder or Hub id of a packed student")
    parser.add_argument("--text", default="The old stone bridge was built before anybody can remember.")
    options = parser.parse_args()
    tokens = AutoTokenizer.from_pretrained(options.student)(options.text, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32)
    with torch.no_grad():
        packed = model(tokens, labels=tokens)
    weights, packed_bytes = model.num_parameters(), model.get_memory_footprint()

    # In place: effective weights behind their SubLNs. Activations are not rounded to 8 bits any more; nothing else changes.
    model = model.dequantize()
    floats = model(tokens, labels=tokens)
    print(
        f"{weights / 1e6:.2f} million weights: {packed_bytes / 1e6:.1f} MB packed, {model.get_memory_footprint() / 1e6:.1f} MB in floats"
    )
    print(f"loss {packed.loss:.4f} packed, {floats.loss.item():.4f} in floats")

    floats.loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-6)
        print(f"loss {model(tokens, labels=tokens).loss:.4f} after a step along the gradient")


if __name__ == "__main__":
    main()
