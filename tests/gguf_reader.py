"""A reader of GGUF files of its own, and llama.cpp's graphs of the architectures that are exported, in torch: they share no code with what they hold.

A file is: magic, version, number of tensors and of keys; keys (name, type, value); tensors (name, dimensions with the rows last, type, offset); the
tensors, each from a multiple of 32 bytes on.
"""

import struct
from dataclasses import dataclass

import numpy as np
import torch


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Number of a type -> weights and bytes of a block.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    8: (32, 34),
    14: (256, 210),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    42: (64, 18),
}


@dataclass
class GgufTensor:
    shape: tuple
    type: int
    data: bytes


class _Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, code):
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self):
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, count = self.take("I"), self.take("Q")
            return [self.value(kind) for _ in range(count)]
        return self.take(_SCALARS[kind])


def read_gguf(path):
    """Metadata and tensors of a file."""
    source = _Bytes(path.read_bytes())
    assert source.data[:4] == b"GGUF"
    source.at = 4
    assert source.take("I") == 3
    count, keys = source.take("Q"), source.take("Q")
    metadata = {}
    for _ in range(keys):
        name = source.text()
        metadata[name] = source.value(source.take("I"))
    places = []
    for _ in range(count):
        name = source.text()
        shape = tuple(source.take("Q") for _ in range(source.take("I")))[::-1]
        places.append((name, shape, source.take("I"), source.take("Q")))
    start = -(-source.at // 32) * 32
    tensors = {}
    for name, shape, kind, offset in places:
        assert offset % 32 == 0
        weights = int(np.prod(shape))
        # (I2_S has no blocks: codes, and 32 bytes with the scale of the tensor.)
        size = weights // 4 + 32 if kind == 36 else weights // _BLOCKS[kind][0] * _BLOCKS[kind][1]
        data = source.data[start + offset : start + offset + size]
        assert len(data) == size, name
        tensors[name] = GgufTensor(shape, kind, data)
    return metadata, tensors


def values(tensor, i2_s_width=32):
    """The effective values of a tensor, float32."""
    raw = np.frombuffer(tensor.data, np.uint8)
    if tensor.type == 0:
        flat = raw.view("<f4")
    elif tensor.type == 1:
        flat = raw.view("<f2")
    elif tensor.type == 36:
        scale = raw[-32:].view("<f4")[0]
        assert not raw[-28:].any()
        count = int(np.prod(tensor.shape))
        flat = np.empty(count, np.float32)
        for index in range(count):
            block, within = divmod(index, 4 * i2_s_width)
            field = raw[block * i2_s_width + within % i2_s_width] >> (6 - 2 * (within // i2_s_width)) & 3
            assert field < 3
            flat[index] = (int(field) - 1) * scale
    elif tensor.type == 42:
        blocks = raw.reshape(-1, 18)
        fields = np.stack([blocks[:, 2:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(len(blocks), 64)
        assert fields.max() < 3
        flat = (fields.astype(np.float32) - 1) * blocks[:, :2].copy().view("<f2").astype(np.float32)
    else:
        from gguf import GGMLQuantizationType, quants

        flat = quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType(tensor.type))
    return torch.from_numpy(flat.astype(np.float32).reshape(tensor.shape).copy())


def graph_logits(path, tokens, ternary=(34, 35, 36, 42)):
    """What llama.cpp's graph of the file's architecture gives for tokens, with activations in front of ternary matrices rounded as the student rounds
    them. `[tokens, vocabulary]`."""
    metadata, tensors = read_gguf(path)
    architecture = metadata["general.architecture"]
    key = {name.removeprefix(f"{architecture}."): value for name, value in metadata.items()}
    heads, kv_heads, width = (key[f"attention.{name}"] for name in ("head_count", "head_count_kv", "key_length"))
    used = set()

    def weight(name):
        used.add(name)
        return values(tensors[name])

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + key["attention.layer_norm_rms_epsilon"]).sqrt() * weight(name)

    def matrix(x, name):
        if tensors[f"{name}.weight"].type in ternary:
            scale = 127 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
            x = (x * scale).round().clamp(-128, 127) / scale
        x = x @ weight(f"{name}.weight").T
        if f"{name}.scale" in tensors:
            x = x * weight(f"{name}.scale")
        return x + weight(f"{name}.bias") if f"{name}.bias" in tensors else x

    def rotate(x):
        """`[tokens, heads, width]`: pairs of neighbours in `llama`, of halves in the others."""
        half = width // 2
        frequencies = key["rope.freq_base"] ** (-torch.arange(half) / half) / key.get("rope.scaling.factor", 1.0)
        if "rope_freqs.weight" in tensors:
            frequencies = frequencies / weight("rope_freqs.weight")
        angles = (torch.arange(len(x))[:, None] * frequencies)[:, None]
        first, second = (x[..., ::2], x[..., 1::2]) if architecture == "llama" else (x[..., :half], x[..., half:])
        turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
        return torch.stack(turned, -1).flatten(-2) if architecture == "llama" else torch.cat(turned, -1)

    x = weight("token_embd.weight")[torch.tensor(tokens)]
    mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)
    for index in range(key["block_count"]):
        block = f"blk.{index}"
        y = norm(x, f"{block}.attn_norm.weight")
        q, k, v = (matrix(y, f"{block}.attn_{part}").view(len(tokens), -1, width) for part in "qkv")
        if architecture == "qwen3":
            q, k = norm(q, f"{block}.attn_q_norm.weight"), norm(k, f"{block}.attn_k_norm.weight")
        q, k = rotate(q), rotate(k)
        k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5 + mask
        y = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        if architecture == "bitnet":
            y = norm(y, f"{block}.attn_sub_norm.weight")
        x = x + matrix(y, f"{block}.attn_output")
        y = norm(x, f"{block}.ffn_norm.weight")
        y = torch.nn.functional.silu(matrix(y, f"{block}.ffn_gate")) * matrix(y, f"{block}.ffn_up")
        if architecture == "bitnet":
            y = norm(y, f"{block}.ffn_sub_norm.weight")
        x = x + matrix(y, f"{block}.ffn_down")
    head = "output.weight" if "output.weight" in tensors and architecture != "bitnet" else "token_embd.weight"
    logits = norm(x, "output_norm.weight") @ weight(head).T
    assert used == set(tensors), set(tensors) ^ used  # llama.cpp refuses a file with tensors that it does not read
    return logits
