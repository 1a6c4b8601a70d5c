"""Speed of whole models: the native decoder against llama.cpp and the limit of the machine, measured in the same run.

    python benchmarks/bench_decode.py [--shapes 0.6B 2B4T] [--threads 1 2] --output benchmarks/results/decode.json

Models are random: ternary weights, tied embedding and head, the shapes of a 0.6B model, of BitNet b1.58 2B4T, and (only where asked for: 8 GB) of
Qwen3-30B-A3B, a mixture of 128 experts, 8 a token. Of the first two llama.cpp gets the
same weights as GGUF (TQ2_0, embedding and head Q8_0) where `llama-cpp-python` and `gguf` are installed. Every system lives in a process of its own
and waits while another is measured; rounds are interleaved, and medians are reported. Decoding starts from an empty context, prefill
reads a prompt at once. `bytes_per_token` are the weights (and head) that a decoded token reads, without keys and values; `read_gbps` is the read
bandwidth of the same number of threads, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as in its config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int = 128
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0


SHAPES = {
    "0.6B": Shape(1024, 3072, 28, 16, 8, 151936),
    "2B4T": Shape(2560, 6912, 30, 20, 5, 128256),
    "30B-A3B": Shape(2048, 6144, 48, 32, 4, 151936, 128, 128, 8, 768),
}
READ_BYTES = 1200 << 20  # larger than the last-level cache


# ---- Models ----------------------------------------------------------------------------------------------------------


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """A packed student of the Llama architecture, or with experts of Qwen3's, with random ternary weights."""
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    from hf_bitdistill import BitNetConfig
    from hf_bitdistill.surgery import convert_modules

    torch.manual_seed(0)
    config_class = Qwen3MoeConfig if shape.num_experts else LlamaConfig
    sizes = {name: value for name, value in vars(shape).items() if value}
    config = config_class(**sizes, tie_word_embeddings=True, max_position_embeddings=4096, dtype="bfloat16")
    quantization = BitNetConfig(quantization_mode="offline")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    convert_modules(model, quantization)
    tensors = {}
    for name, like in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if like.dtype == torch.uint8:
            codes = torch.randint(0, 3, (4, *like.shape), dtype=torch.uint8)
            tensors[name] = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        elif name.endswith("weight_scale"):
            tensors[name] = torch.full(like.shape, 0.02)
        elif like.dim() == 1:
            tensors[name] = torch.ones(like.shape, dtype=torch.bfloat16)
        else:
            tensors[name] = torch.randn(like.shape, dtype=torch.bfloat16) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(tensors, folder, max_shard_size="50GB", metadata={"format": "pt"})
    config.quantization_config = quantization
    config.save_pretrained(folder)


def write_gguf(shape: Shape, checkpoint: Path, file: Path) -> None:
    """The same weights for llama.cpp."""
    import gguf
    from safetensors import safe_open

    from hf_bitdistill.quantization import unpack_ternary

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    ternary, eight = gguf.GGMLQuantizationType.TQ2_0, gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    with safe_open(checkpoint / "model.safetensors", framework="pt") as tensors:

        def add(name, tensor, kind) -> None:
            writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)

        add("token_embd.weight", tensors.get_tensor("model.embed_tokens.weight"), eight)
        writer.add_tensor("output_norm.weight", tensors.get_tensor("model.norm.weight").float().numpy())
        for layer in range(shape.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            for theirs, ours in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
                norm = tensors.get_tensor(f"{prefix}{ours}.weight")
                writer.add_tensor(f"blk.{layer}.{theirs}.weight", norm.float().numpy())
            for ours, theirs in names.items():
                packed = tensors.get_tensor(f"{prefix}{ours}.weight")
                scale = tensors.get_tensor(f"{prefix}{ours}.weight_scale")
                add(
                    f"blk.{layer}.{theirs}.weight",
                    unpack_ternary(packed, 4 * packed.shape[0]).float() * scale,
                    ternary,
                )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_bytes_per_token(file: Path) -> int:
    """Bytes of the matrices of a GGUF file, the tied embedding counted once: it is read as the head."""
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(str(file)).tensors if len(tensor.shape) > 1)


# ---- Measuring -------------------------------------------------------------------------------------------------------


def serve(connection, system, decode_tokens: int) -> None:
    """A process with one system: loads it, then measures whenever it is asked to."""
    from hf_bitdistill.benchmark.worker import load_runner

    start = time.perf_counter()
    runner = load_runner(system)
    connection.send({"load_seconds": time.perf_counter() - start, "bytes_per_token": runner.bytes_per_token})
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, runner.vocab_size, (system.prompt_tokens,), generator=generator).tolist()
    while connection.recv() == "measure":
        start = time.perf_counter()
        runner.prefill(prompt)
        prefill = time.perf_counter() - start
        token = runner.prefill(prompt[:1])
        start = time.perf_counter()
        for _ in range(decode_tokens):
            token = runner.step(token)
        connection.send((len(prompt) / prefill, decode_tokens / (time.perf_counter() - start)))


def measure_shape(name: str, args: argparse.Namespace, folder: Path, read) -> list[dict]:
    """Results of one shape."""
    from hf_bitdistill.benchmark import System
    from hf_bitdistill.environment import processor_name

    shape = SHAPES[name]
    checkpoint, gguf_file = folder / name, folder / f"{name}.gguf"
    if not checkpoint.exists():
        write_checkpoint(shape, checkpoint)
    peers = (
        not args.no_peers
        and not shape.num_experts
        and all(importlib.util.find_spec(module) for module in ("llama_cpp", "gguf"))
    )
    if peers and not gguf_file.exists():
        write_gguf(shape, checkpoint, gguf_file)
    if not peers:
        print("no peer is measured: llama-cpp-python or gguf is not installed, or it is a mixture", file=sys.stderr)

    context = multiprocessing.get_context("spawn")
    workers = {}
    for threads in args.threads:
        systems = {
            f"hf-bitdistill, {bits}-bit head": System(
                "native", str(checkpoint), args.prompt, args.new_tokens, threads=threads, head_bits=bits
            )
            for bits in args.head_bits
        }
        if peers:
            systems["llama.cpp TQ2_0, Q8_0 head"] = System(
                "llama.cpp", str(gguf_file), args.prompt, args.new_tokens, threads=threads
            )
        for label, system in systems.items():
            connection, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, system, args.new_tokens), daemon=True)
            process.start()
            theirs.close()
            about = connection.recv()
            if system.kind == "llama.cpp":
                about["bytes_per_token"] = gguf_bytes_per_token(gguf_file)
            workers[label, threads] = (process, connection, about)

    rates = {key: [] for key in workers}
    reads = {threads: [] for threads in args.threads}
    for round_number in range(args.rounds + 1):
        for threads in args.threads:
            bandwidth = read(threads)
            if round_number:  # the first warms up
                reads[threads].append(bandwidth)
        for key, (_, connection, _) in workers.items():
            connection.send("measure")
            rate = connection.recv()
            if round_number:
                rates[key].append(rate)
    results = []
    for (label, threads), (process, connection, about) in workers.items():
        connection.send("stop")
        process.join(30)
        prefill, decode = (statistics.median(values) for values in zip(*rates[label, threads], strict=True))
        bandwidth = statistics.median(reads[threads])
        results.append(
            {
                "shape": name,
                "system": label,
                "threads": threads,
                "decode_tps": round(decode, 2),
                "prefill_tps": round(prefill, 2),
                "bytes_per_token": about["bytes_per_token"],
                "read_gbps": round(bandwidth / 1e9, 2),
                "share_of_read_bandwidth": round(decode * about["bytes_per_token"] / bandwidth, 3),
                "load_seconds": round(about["load_seconds"], 2),
                "decode_tps_rounds": [round(d, 2) for _, d in rates[label, threads]],
                "prefill_tps_rounds": [round(p, 2) for p, _ in rates[label, threads]],
                "prompt_tokens": args.prompt,
                "new_tokens": args.new_tokens,
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "cpu": processor_name(),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr)
    return results


def main() -> None:
    from hf_bitdistill.ops import native

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["0.6B", "2B4T"], choices=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--head_bits", type=int, nargs="+", default=[8, 4], choices=[32, 16, 8, 4])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_peers", action="store_true", help="measure no other system")
    parser.add_argument("--folder", type=Path, help="keep the random models here; default: a temporary folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    library, reason = native.load()
    if library is None:
        raise SystemExit(f"the native library is not loaded: {reason}")
    buffer = torch.ones(READ_BYTES, dtype=torch.uint8)

    def read(threads: int) -> float:
        library.set_threads(threads)
        return max(library.read_bandwidth(buffer.data_ptr(), READ_BYTES) for _ in range(3))

    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.shapes:
            results += measure_shape(name, args, args.folder or Path(temporary), read)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
