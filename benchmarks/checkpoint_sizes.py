"""How large packed checkpoints are, what loading them costs, and what small tables cost in quality.

Students of the shapes of SmolLM2-135M, gemma-3-270m and Qwen3-0.6B are packed in bfloat16 with tables of 16, 8 and 4 bits and written; sizes are
those of the files. The weights are random (SmolLM2's own with `--smollm2`): no size depends on their values. The largest is loaded by both loaders, each
time in a fresh process from the page cache. Imports, and what a first load sets up, are done with a tiny model before: what is measured is the
load. Peak memory is the kernel's high-water mark (VmHWM, reset before the load) less what the process held then; pages of a mapped file count.

Quality, of the models that are given: nats a token on the same text, and the divergence of the predictions from those with float32 tables, of the
full-precision model and of the untrained student made of it, everything else in float32. Both are of the model as it computes: a head of
integers rounds its input, too.

    python benchmarks/checkpoint_sizes.py [--smollm2 FOLDER] [--quality NAME=FOLDER ... --text DATA/corpus] --output benchmarks/results/checkpoint_sizes.json
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

from hf_bitdistill import apply_bitnet, pack
from hf_bitdistill.data import load_corpus, pack_corpus
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.modeling.lm_head import stored_layers, use_stored_layers
from hf_bitdistill.modeling.sizes import bytes_by_kind


BITS = (16, 8, 4)
SHAPES = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "gemma-3-270m": Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1,
        head_dim=256, tie_word_embeddings=True,
    ),
    "Qwen3-0.6B": Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, tie_word_embeddings=True,
    ),
}  # fmt: skip
TINY = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    tie_word_embeddings=True,
)  # fmt: skip
# MB, with tables of 8 bits.
AIMS = {"SmolLM2-135M": 57, "gemma-3-270m": 215, "Qwen3-0.6B": 270}
LOADED = "Qwen3-0.6B"
AIM_SECONDS, AIM_MEMORY = 2.0, 1.10
ROUNDS, BLOCK = 5, 256


def random_model(config) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def write(full: PreTrainedModel, folder: Path, bits: int) -> None:
    pack(full, dtype="bfloat16", table_bits=bits).save_pretrained(folder)


def measure_sizes(name: str, full: PreTrainedModel, folder: Path) -> dict:
    parameters = sum(p.numel() for p in full.parameters())
    result = {"parameters": parameters, "bfloat16_bytes": 2 * parameters, "gguf": gguf_bytes(full), "packed": {}}
    student = apply_bitnet(full)
    for bits in BITS:
        write(student, folder / str(bits), bits)
        result["packed"][bits] = bytes_by_kind(folder / str(bits)).to_dict()
    total = result["packed"][8]["bytes"]["total"]
    result["aim"] = {"table_bits": 8, "bytes": AIMS[name] * 10**6, "reached": total <= AIMS[name] * 10**6}
    if not result["aim"]["reached"]:
        result["aim"]["missed_by"] = total - AIMS[name] * 10**6
    return result


def gguf_bytes(full: PreTrainedModel) -> dict | None:
    """Bytes of the tensors of a GGUF file with tables in Q8_0, projections in TQ2_0 and norms in F32, by the block sizes of the package `gguf`
    (`None`: it is not installed). TQ2_0 wants rows of a multiple of 256; what has others is counted in F16, as a converter leaves it."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        return None
    tables = {id(layer.weight) for layer in (full.get_input_embeddings(), full.get_output_embeddings())}
    sizes = {"Q8_0": 0, "TQ2_0": 0, "F16": 0, "F32": 0}
    for parameter in full.parameters():
        if parameter.ndim < 2:
            kind = "F32"
        elif id(parameter) in tables:
            kind = "Q8_0"
        else:
            kind = "F16" if parameter.shape[1] % 256 else "TQ2_0"
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        sizes[kind] += parameter.numel() // block * size
    return {**sizes, "total": sum(sizes.values())}


# ---- Loading, in a process of its own -------------------------------------------------------------------------------


def status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def load(loader: str, folder: Path):
    if loader == "transformers":
        return AutoModelForCausalLM.from_pretrained(folder)
    from optimum.bitnet import BitNetModelForCausalLM

    return BitNetModelForCausalLM.from_pretrained(folder)


def work(loader: str, folder: Path, tiny: Path) -> None:
    load(loader, tiny)(torch.tensor([[1, 2]]))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    start = time.perf_counter()
    model = load(loader, folder)
    seconds = time.perf_counter() - start
    peak = status("VmHWM") - before
    with torch.no_grad():
        model(torch.tensor([[1, 2]]))
    after = {key: status(key) for key in ("RssAnon", "RssFile")}
    print(json.dumps({"seconds": seconds, "peak": peak, "peak_first_token": status("VmHWM") - before, **after}))


def measure_loading(folders: dict[int, Path], tiny: dict[int, Path]) -> dict:
    result = {}
    for bits, folder in folders.items():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        start = time.perf_counter()
        for file in folder.glob("*.safetensors"):
            file.read_bytes()
        read = time.perf_counter() - start  # (also what brings it into the page cache)
        result[bits] = {"file_bytes": size, "reading_seconds": read}
        for loader in ("transformers", "native"):
            command = [sys.executable, __file__, "--worker", loader, str(folder), str(tiny[bits])]
            runs = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(ROUNDS)]
            best = min(run["seconds"] for run in runs)
            peak = max(run["peak"] for run in runs)
            result[bits][loader] = {
                "seconds": sorted(run["seconds"] for run in runs),
                "peak_bytes": peak,
                "peak_of_file": round(peak / size, 3),
                "peak_bytes_with_first_token": max(run["peak_first_token"] for run in runs),
                "aims_reached": {"seconds": best <= AIM_SECONDS, "memory": peak <= AIM_MEMORY * size},
            }
    return result


# ---- Quality ---------------------------------------------------------------------------------------------------------


def rounded(full: PreTrainedModel, bits: int) -> PreTrainedModel:
    """A full-precision model with its tables in `bits`."""
    model = copy.deepcopy(full)
    if bits in (8, 4):
        use_stored_layers(model, stored_layers(model, bits, torch.float32))
    elif bits == 16:
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data = layer.weight.data.bfloat16().float()
    return model


@torch.no_grad()
def compare(models: dict[int, PreTrainedModel], blocks: Iterable[torch.Tensor]) -> dict:
    """Sums over the tokens of all blocks; 32 bits are what the others are compared with."""
    nats, divergence, count = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0.0), 0
    for block in blocks:
        logs = {}
        for bits, model in models.items():
            logs[bits] = F.log_softmax(model(block[None]).logits[0, :-1].float(), dim=-1)
            nats[bits] += F.nll_loss(logs[bits], block[1:], reduction="sum").item()
            divergence[bits] += F.kl_div(logs[bits], logs[32], log_target=True, reduction="sum").item()
        count += len(block) - 1
    return {
        bits: {"nats_per_token": nats[bits] / count, "kl_from_32_bits": divergence[bits] / count, "tokens": count}
        for bits in models
    }


def measure_quality(source: str, text: str, count: int) -> dict:
    full = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = pack_corpus(load_corpus(text, "validation", streaming=True), tokenizer, BLOCK)
    blocks = [torch.tensor(row["input_ids"]) for row, _ in zip(rows, range(count), strict=False)]
    variants = (32, *BITS)
    result = {"full_precision": compare({bits: rounded(full, bits) for bits in variants}, blocks)}
    student = apply_bitnet(full)
    packed = {bits: pack(student, dtype="float32", table_bits=bits) for bits in variants}
    return {**result, "untrained_student": compare(packed, blocks)}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", help="folder of SmolLM2-135M, instead of random weights")
    parser.add_argument(
        "--quality", nargs="*", default=[], metavar="NAME=FOLDER", help="models to measure the quality of"
    )
    parser.add_argument("--text", help="folder of a corpus with a validation split")
    parser.add_argument("--blocks", type=int, default=32, help=f"of {BLOCK} tokens")
    parser.add_argument(
        "--only", nargs="*", default=["sizes", "loading", "quality"], choices=["sizes", "loading", "quality"]
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="results of parts that are left out by --only stay in it"
    )
    options = parser.parse_args()
    result = json.loads(options.output.read_text()) if options.output.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in SHAPES.items():
            if "sizes" in options.only or (name == LOADED and "loading" in options.only):
                if name == "SmolLM2-135M" and options.smollm2:
                    full = AutoModelForCausalLM.from_pretrained(options.smollm2, dtype=torch.float32)
                else:
                    full = random_model(config)
                sizes = measure_sizes(name, full, Path(scratch, name))
                result.setdefault("sizes", {})[name] = sizes
                del full
        if "loading" in options.only:
            tiny = apply_bitnet(random_model(TINY))
            folders = {bits: Path(scratch, "tiny", str(bits)) for bits in BITS}
            for bits, folder in folders.items():
                write(tiny, folder, bits)
            loading = measure_loading({bits: Path(scratch, LOADED, str(bits)) for bits in BITS}, folders)
            result["loading"] = {"model": LOADED, **loading, "environment": describe_environment()}
    if "quality" in options.only:
        for entry in options.quality:
            name, _, source = entry.partition("=")
            result.setdefault("quality", {})[name] = measure_quality(source, options.text, options.blocks)
    result["environment"] = describe_environment()
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
