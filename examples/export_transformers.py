"""A student for programs that have transformers and not this package: packed, or in floats.

    python examples/export_transformers.py packed/ out/ --prompt "Once upon a time"

`out/packed` computes what the student computes, in transformers' own "bitnet" format: 2 bits a weight where a matrix has one scale
(`weight_granularity="tensor"`), floats where each row has one, as after `bitdistill run`. `out/dense` is an ordinary bfloat16 model, as many bytes as the
teacher, whose activations are not rounded to 8 bits. A student that transformers alone cannot compute is refused, with the reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill.export import UnsupportedExportError, export_transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder or Hub id of a student, packed or in training")
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompt", default="Once upon a time")
    options = parser.parse_args()
    for name, dense in (("packed", False), ("dense", True)):
        folder = options.output / name
        try:
            config = export_transformers(options.student, folder, dense=dense)
        except UnsupportedExportError as error:
            print(f"{name}: {error}")
            continue
        size = (folder / "model.safetensors").stat().st_size
        print(f"{folder}: {config.architectures[0]}, {size / 1e6:.1f} MB")

        # What a program does that has transformers alone.
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer(options.prompt, return_tensors="pt")
        print(tokenizer.decode(model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]))


if __name__ == "__main__":
    main()
