"""Random models of known shapes, for this package and for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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

    def config(self, **options: Any) -> PreTrainedConfig:
        """Of a Llama, or with experts of Qwen3's, with tied embeddings; `options` are further ones."""
        from transformers import LlamaConfig, Qwen3MoeConfig

        sizes = {name: value for name, value in vars(self).items() if value}
        return (Qwen3MoeConfig if self.num_experts else LlamaConfig)(**sizes, tie_word_embeddings=True, **options)


SHAPES = {
    "0.6B": Shape(1024, 3072, 28, 16, 8, 151936),
    "2B4T": Shape(2560, 6912, 30, 20, 5, 128256),
    "30B-A3B": Shape(2048, 6144, 48, 32, 4, 151936, 128, 128, 8, 768),
}


def write_checkpoint(shape: Shape, folder: Path, weight_bits: float = 2) -> None:
    """A packed student of the Llama architecture, or with experts of Qwen3's, with random ternary weights of 2 or 1.6 bits in its file."""
    from transformers import AutoModelForCausalLM

    from hf_bitdistill import BitNetConfig
    from hf_bitdistill.modeling.offline_files import write_offline
    from hf_bitdistill.modeling.surgery import convert_modules

    torch.manual_seed(0)
    config = shape.config(max_position_embeddings=4096, dtype="bfloat16")
    quantization = BitNetConfig(quantization_mode="offline", weight_bits=weight_bits)
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
    config.quantization_config = quantization
    write_offline(folder, tensors, config, "50GB", model)


def write_gguf(shape: Shape, checkpoint: Path, file: Path, kind: str = "TQ2_0") -> None:
    """The same weights for llama.cpp, embedding and head in Q8_0.

    `kind` is GGUF's type of the ternary weights: TQ2_0, or F16 for programs whose own tool makes what they run (`llama-quantize`).
    """
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
    ternary, eight = gguf.GGMLQuantizationType[kind], gguf.GGMLQuantizationType.Q8_0
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
