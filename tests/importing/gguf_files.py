"""Tiny ternary models in GGUF files, written byte by byte from what the format says, and what they compute, by transformers' own dense models."""

import struct

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import random_tokens


HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, VOCABULARY = 256, 512, 2, 4, 2, 384
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (MLP, HIDDEN),
    "ffn_up": (MLP, HIDDEN),
    "ffn_down": (HIDDEN, MLP),
}
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# type -> its number in files, and weights a block
TYPES = {"TQ1_0": (34, 256), "TQ2_0": (35, 256), "Q2_0": (42, 64), "Q2_0-128": (42, 128)}


def ternary_bytes(codes, scales, kind):
    """Rows of blocks. TQ1_0 and TQ2_0 by the package gguf; Q2_0 field by field."""
    if kind.startswith("TQ"):
        return quantize((codes * np.repeat(scales, 256, axis=1)).astype(np.float32), GGMLQuantizationType[kind])
    size = TYPES[kind][1]
    out = []
    for row, row_scales in zip(codes, scales, strict=True):
        line = b""
        for block, scale in enumerate(row_scales):
            line += struct.pack("<e", scale)
            for first in range(block * size, (block + 1) * size, 4):
                line += bytes([sum((int(row[first + j]) + 1) << 2 * j for j in range(4))])
        out.append(list(line))
    return np.array(out, np.uint8)


def as_type(values, kind):
    """Floats in one of GGUF's other types: number and bytes."""
    number = GGMLQuantizationType[kind]
    return int(number), quantize(np.atleast_2d(values.numpy().astype(np.float32)), number).view(np.uint8)


def permuted(rows, heads):
    """As llama.cpp's converter stores the rows of Q and K of the architecture llama."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value_bytes(value):
    """Type and content of a value of the metadata."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
    kind, letter = (6, "f") if isinstance(value[0], float) else (5, "i")
    return struct.pack("<IIQ", 9, kind, len(value)) + struct.pack(f"<{len(value)}{letter}", *value)


def write_gguf(path, metadata, tensors):
    """Write a file. `tensors`: name -> (shape in torch's order, type number, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value_bytes(value) for key, value in metadata.items())
    body = b""
    for name, (shape, number, data) in tensors.items():
        dimensions = tuple(reversed(shape))
        head += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *dimensions)
        head += struct.pack("<IQ", number, len(body))
        body += data.tobytes() + bytes(-data.nbytes % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


class GgufModel:
    """A random ternary model.

    Args:
        arch: of llama.cpp.
        kind: key of `TYPES`.
        scales: "tensor", "row" or "block": what has a scale of its own.
        extra: more keys of the metadata.
        kept: parts of the layers' names -> another type for these.
        tokenizer: to be written too.
    """

    def __init__(self, arch="llama", kind="TQ2_0", scales="tensor", extra=None, kept=None, tokenizer=None, tied=False):
        self.arch, self.kind, self.tied = arch, kind, tied
        draw = np.random.default_rng(7)
        torch.manual_seed(7)
        self.metadata = {
            "general.architecture": arch,
            f"{arch}.context_length": 128,
            f"{arch}.embedding_length": HIDDEN,
            f"{arch}.block_count": LAYERS,
            f"{arch}.feed_forward_length": MLP,
            f"{arch}.attention.head_count": HEADS,
            f"{arch}.attention.head_count_kv": KV_HEADS,
            f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{arch}.rope.freq_base": 5000.0,
            **tokenizer_keys(tokenizer),
            **(extra or {}),
        }
        self.tensors, self.state, self.sub_norms = {}, {}, {}
        self._add_floats("token_embd", "model.embed_tokens", torch.randn(VOCABULARY, HIDDEN) * 0.3, "F16")
        self._add_floats("output_norm", "model.norm", 1 + 0.1 * torch.randn(HIDDEN))
        if not tied:
            self._add_floats("output", "lm_head", torch.randn(VOCABULARY, HIDDEN) * 0.1, "Q8_0")
        for layer in range(LAYERS):
            for name, shape in SHAPES.items():
                other = (kept or {}).get(f"blk.{layer}.{name}")
                if other:
                    values = torch.randn(shape) * 0.06
                    self._add_floats(f"blk.{layer}.{name}", f"model.layers.{layer}.{MODULES[name]}", values, other)
                else:
                    self._add_ternary(layer, name, shape, scales, draw)
            norms = ["attn_norm", "ffn_norm"]
            norms += ["attn_q_norm", "attn_k_norm"] if arch == "qwen3" else []
            for name in norms:
                size = HIDDEN if name in ("attn_norm", "ffn_norm") else HIDDEN // HEADS
                weight = 1 + 0.2 * torch.randn(size)
                self._add_floats(f"blk.{layer}.{name}", f"model.layers.{layer}.{MODULES[name]}", weight)
            if arch == "qwen2":
                for name in ("attn_q", "attn_k", "attn_v"):
                    bias = 0.1 * torch.randn(SHAPES[name][0])
                    full = f"blk.{layer}.{name}.bias"
                    self.state[f"model.layers.{layer}.{MODULES[name]}.bias"] = bias
                    self.tensors[full] = (tuple(bias.shape), *as_type(bias, "F32"))
            if arch == "bitnet":
                for name, module, size in (("attn_sub_norm", "o_proj", HIDDEN), ("ffn_sub_norm", "down_proj", MLP)):
                    weight = 1 + 0.2 * torch.randn(size)
                    self.sub_norms[layer, module] = weight
                    self.tensors[f"blk.{layer}.{name}.weight"] = (tuple(weight.shape), *as_type(weight, "F32"))

    def _add_floats(self, name, module, values, kind="F32"):
        number, data = as_type(values, kind)
        self.tensors[f"{name}.weight"] = (tuple(values.shape), number, data)
        from gguf.quants import dequantize

        back = dequantize(data, GGMLQuantizationType(number)).reshape(values.shape)
        self.state[f"{module}.weight"] = torch.from_numpy(np.array(back, np.float32))

    def _add_ternary(self, layer, name, shape, scales, draw):
        number, size = TYPES[self.kind]
        rows, blocks = shape[0], shape[1] // size
        codes = draw.integers(-1, 2, shape).astype(np.int8)
        codes[:, ::size] = 1  # (no block of zeros, whose scale the package gguf writes as 0)
        values = 0.02 + 0.08 * draw.random((rows, blocks))
        if scales == "tensor":
            values[:] = values[0, 0]
        elif scales == "row":
            values[:] = values[:, :1]
        values = values.astype(np.float16).astype(np.float32)
        weight = codes * np.repeat(values, size, axis=1)
        self.state[f"model.layers.{layer}.{MODULES[name]}.weight"] = torch.from_numpy(weight)
        if self.arch == "llama" and name in ("attn_q", "attn_k"):
            heads = HEADS if name == "attn_q" else KV_HEADS
            codes, values = permuted(codes, heads), permuted(values, heads)
        self.tensors[f"blk.{layer}.{name}.weight"] = (shape, number, ternary_bytes(codes, values, self.kind))

    def save(self, path):
        write_gguf(path, self.metadata, self.tensors)
        return path

    @torch.no_grad()
    def logits(self, tokens, activation_bits=8, **config):
        """What the model means: a dense model of transformers with the effective weights, and hooks."""
        model_type = "llama" if self.arch == "bitnet" else self.arch
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "tie_word_embeddings": self.tied,
            **({"head_dim": HIDDEN // HEADS} if model_type != "qwen2" else {}),
            **config,
        }
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval().float()
        missing, unexpected = model.load_state_dict(self.state, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
        for name, module in model.named_modules():
            if not name.endswith("_proj"):
                continue
            layer = int(name.split(".")[2])
            kept = f"{name}.weight" in self.dense_names()
            norm = self.sub_norms.get((layer, name.rsplit(".", 1)[1]))
            module.register_forward_pre_hook(_prepare(norm, None if kept else activation_bits))
        return model(tokens).logits

    def dense_names(self):
        ternary = {number for number, _ in TYPES.values()}
        return {
            f"model.layers.{name.split('.')[1]}.{MODULES[name.split('.')[2]]}.weight"
            for name, (_, number, _) in self.tensors.items()
            if name.startswith("blk.") and name.split(".")[2] in SHAPES and number not in ternary
        }


def _prepare(norm, bits):
    def hook(module, inputs):
        x = inputs[0]
        if norm is not None:
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * norm
        if bits is None:
            return (x,)
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return ((x * scale).round().clamp(-128, 127) / scale,)

    return hook


def tokenizer_keys(tokenizer):
    """Vocabulary and merges of a byte-level tokenizer, as llama.cpp has them."""
    if tokenizer is None:
        return {}
    import json

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(backend["model"]["vocab"].items(), key=lambda entry: entry[1])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if index < 3 else 1 for _, index in vocabulary],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }


def some_tokens():
    return random_tokens(2, 9)
