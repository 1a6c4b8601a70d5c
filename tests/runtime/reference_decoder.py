"""What the native decoder computes, written a second time in torch from the text of `csrc/bitdistill.h`, float32."""

import torch
import torch.nn.functional as F

from hf_bitdistill.ops import packed_embedding, packed_linear


def rms_norm(x, weight, eps):
    return x if weight is None else x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, positions, rope):
    """x: [heads, n, head_dim]."""
    angles = positions[:, None].float() * rope.inv_freq
    cos, sin = angles.cos() * rope.attention_scaling, angles.sin() * rope.attention_scaling
    half = rope.inv_freq.numel()
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


ACTIVATIONS = [F.silu, F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.relu, lambda x: F.relu(x).square()]


class ReferenceDecoder:
    """One sequence at a time, no cache.

    Args:
        rows: gives the rows of a projection by its module's name.
    """

    def __init__(self, spec, weights, rows):
        self.spec, self.weights, self.rows = spec, weights, rows

    def norm(self, x, norm):
        return x if norm is None else rms_norm(x, self.weights.norm(norm), norm.eps)

    def linear(self, x, projections):
        parts = []
        for projection in projections:
            p, rows = self.weights.projection(projection), self.rows(projection.module)
            if projection.ternary:
                parts.append(packed_linear(x, p.weight, rows, p.bias, p.norm_weight, p.norm_eps))
            else:
                parts.append(F.linear(rms_norm(x, p.norm_weight, p.norm_eps), p.weight.float(), p.bias))
        return torch.cat(parts, -1)

    def table(self, name):
        table = self.weights.table(name)
        if table.data.dtype != torch.uint8:
            return table.data.float()
        return packed_embedding(torch.arange(table.rows), table.data, table.columns)

    def mlp(self, x, mlp):
        gate, up = self.linear(x, mlp.gate_up).chunk(2, -1)
        return self.linear(ACTIVATIONS[self.spec.activation](gate) * up, [mlp.down])

    def mixture(self, x, layer):
        mixture = layer.mixture
        p = F.linear(x, self.weights.projection(mixture.router).weight.float()).softmax(-1)
        top = p.topk(mixture.experts_per_token, dim=-1)
        weights = top.values / top.values.sum(-1, keepdim=True) if mixture.normalise else top.values
        weights = torch.zeros_like(p).scatter(1, top.indices, weights)
        return sum(weights[:, index, None] * self.mlp(x, mlp) for index, mlp in enumerate(layer.mlps))

    def hidden(self, tokens):
        spec = self.spec
        n, positions = len(tokens), torch.arange(len(tokens))
        x = self.table(spec.embedding)[tokens] * spec.embedding_scale
        distance = positions[:, None] - positions
        for layer in spec.layers:
            widths = [count * spec.head_dim for count in (spec.heads, spec.kv_heads, spec.kv_heads)]
            q, k, v = self.linear(self.norm(x, layer.input_norm), layer.qkv).split(widths, -1)
            states = []
            for state, norm in ((q, layer.q_norm), (k, layer.k_norm), (v, None)):
                over_all = norm is not None and self.weights.norm(norm).numel() != spec.head_dim
                state = self.norm(state, norm) if over_all else state
                state = state.view(n, -1, spec.head_dim)
                states.append((state if over_all else self.norm(state, norm)).transpose(0, 1))
            q, k, v = states
            if layer.rope >= 0:
                q, k = (rotate(state, positions, spec.ropes[layer.rope]) for state in (q, k))
            k, v = (state.repeat_interleave(spec.heads // spec.kv_heads, 0) for state in (k, v))
            scores = q @ k.transpose(1, 2) * spec.attention_scale
            if spec.attention_softcap:
                scores = spec.attention_softcap * torch.tanh(scores / spec.attention_softcap)
            visible = (distance >= 0) & (distance < (layer.window or n + 1))
            heads = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
            out = self.linear(heads.transpose(0, 1).reshape(n, -1), [layer.o])
            x = x + self.norm(out, layer.post_attention_norm)
            inputs = self.norm(x, layer.pre_feedforward_norm)
            out = self.mlp(inputs, layer.mlps[0]) if layer.mixture is None else self.mixture(inputs, layer)
            x = x + self.norm(out, layer.post_feedforward_norm)
        return self.norm(x, spec.final_norm)

    def logits(self, tokens):
        logits = self.hidden(tokens) @ self.table(self.spec.head).T
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits
