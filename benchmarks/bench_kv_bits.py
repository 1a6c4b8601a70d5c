"""What fewer bits of keys and values cost in quality: perplexity of the native decoder at a long context, for every way to keep them.

    python benchmarks/bench_kv_bits.py --model MODEL --name NAME --text FILE [--length 4096] [--blocks 8] --output benchmarks/results/kv_bits.json

MODEL holds a packed student, or a model in full precision. Of the latter the key projection of the middle layer alone is made ternary, because the
native decoder reads students: what fewer bits cost is told there without a student's own error.

The text is read in blocks of `length` tokens, 512 tokens a call, so a token's query meets keys and values as the cache keeps them. The output
head keeps the checkpoint's bits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.evaluation.likelihood import perplexity
from hf_bitdistill.machine.environment import describe_environment
from optimum.bitnet import BitNetModelForCausalLM


def packed(model: Path, folder: Path) -> Path:
    """`model` if it is a packed student, else one in `folder`: its key projection of the middle layer ternary, all others as they are."""
    if getattr(AutoConfig.from_pretrained(model), "quantization_config", None) is not None:
        return model
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ternary = f"layers.{loaded.config.num_hidden_layers // 2}.self_attn.k_proj"
    head = loaded.get_output_embeddings()
    kept = [
        name
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not name.endswith(ternary)
    ]
    pack(
        apply_bitnet(loaded, BitNetConfig(sub_norm="none", modules_to_not_convert=kept)), dtype="float32"
    ).save_pretrained(folder)
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the model, for the record")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a block")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--kv_bits", type=int, nargs="+", default=[32, 16, 8], choices=[32, 16, 8])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(args.text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    blocks = [ids[start : start + args.length] for start in range(0, len(ids) - args.length + 1, args.length)]
    if len(blocks) < args.blocks:
        parser.error(
            f"--text {args.text} has {len(ids)} tokens, {len(blocks)} blocks of {args.length}: --blocks {args.blocks} are too many"
        )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        student = packed(args.model, Path(folder))
        for bits in args.kv_bits:
            model = BitNetModelForCausalLM.from_pretrained(student, kv_bits=bits, native_file=False)
            if model.decoder is None:
                raise SystemExit(f"the native decoder is not in use: {model.backend}")
            found[bits] = perplexity(model, tokenizer, blocks[: args.blocks], batch_size=1, progress=False)
            print(f"kv_bits={bits}: {found[bits]['perplexity']:.4f}")
    best = found[max(found)]["perplexity"]
    record = {
        "model": args.name,
        "text": args.text.name,
        "length": args.length,
        "blocks": args.blocks,
        "results": {
            bits: {**values, "above_most_bits": values["perplexity"] / best - 1} for bits, values in found.items()
        },
        "environment": describe_environment(),
        "date": date.today().isoformat(),
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
