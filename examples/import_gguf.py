"""Run somebody else's ternary model: import a GGUF file (llama.cpp, Bonsai) and generate with the native decoder.

python examples/import_gguf.py Ternary-Bonsai-1.7B-Q2_0.gguf bonsai

Codes and scales are taken over exactly. The folder is a packed student like any other: `bitdistill verify`, `evaluate` and `benchmark` take it, and so
does transformers.
"""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from hf_bitdistill.importing import import_gguf
from optimum.bitnet import BitNetModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file with weights of type TQ1_0, TQ2_0 or Q2_0")
    parser.add_argument("folder", type=Path, help="where the packed student goes")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--max_new_tokens", type=int, default=32)
    options = parser.parse_args()

    found = import_gguf(options.file, options.folder)
    print(f"one scale a {found.quantization.weight_granularity}, SubLN: {found.quantization.sub_norm}")
    for name, kind in found.kept.items():
        print(f"{name} is {kind} in the file and stays in full precision")
    if found.cost is not None:
        print(f"rounding activations to 8 bits {found.cost}")
    if found.tokenizer_error is not None:
        raise SystemExit(f"{found.tokenizer_error}: give import_gguf a tokenizer")

    model = BitNetModelForCausalLM.from_pretrained(options.folder)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    inputs = tokenizer(options.prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
    print(tokenizer.decode(output[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
