"""A whole student against an independent float64 implementation of the formulas (DESIGN: "The mathematics").

Nothing of `hf_bitdistill` or of transformers computes in the reference: it is written from the formulas. Only one thing is
taken from the student: to which of two integers an activation that lies on the border between them was rounded, because
there float32 and float64 may differ. That the student's integer is a nearest one is checked for every activation.
"""

import math

import pytest
import torch

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.nn import BitLinear


# Widths that no group size divides, so that every row ends in a short group (64 + 32, 64 + 64 + 22).
OPTIONS = {
    "hidden_size": 96,
    "intermediate_size": 150,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "mlp_bias": True,
    "rms_norm_eps": 2e-3,
    "tie_word_embeddings": False,
}
# Large enough to show: no default of any norm.
SUB_NORM_EPS = 5e-3
GRANULARITIES = [{"weight_granularity": "tensor"}, {"weight_granularity": "row"}]
GRANULARITIES += [{"weight_granularity": "group", "group_size": 64}]


class Reference:
    """A Llama student in float64 from its state dict.

    Args:
        state: tensors by their names in the module tree, float64.
        granularity: columns that share a scale: "tensor", "row" or a number (of consecutive columns of a row).
        rounded: name of a projection -> the integers that the student's own activations were rounded to.
        broken: the name of a part to leave out, to show that its absence would be noticed.
    """

    def __init__(self, state, granularity, rounded, broken=None):
        self.state, self.granularity, self.rounded, self.broken = state, granularity, rounded, broken

    def rms_norm(self, x, weight, eps):
        return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    def ternary_weight(self, weight):
        """gamma * clip(round(W / gamma), -1, 1), scale by scale."""
        if self.granularity == "tensor":
            blocks = [(slice(None), slice(None))]
        elif self.granularity == "row":
            blocks = [(row, slice(None)) for row in range(weight.shape[0])]
        else:
            starts = range(0, weight.shape[1], self.granularity)
            blocks = [
                (row, slice(start, start + self.granularity)) for row in range(weight.shape[0]) for start in starts
            ]
        effective = torch.empty_like(weight)
        for block in blocks:
            gamma = max(weight[block].abs().mean().item(), 1e-5)
            codes = torch.round(weight[block] / gamma)
            if self.broken != "clip":
                codes = torch.where(codes.abs() > 1, codes.sign(), codes)
            effective[block] = codes * (1.0 if self.broken == "weight scale" else gamma)
        return effective

    def project(self, x, name):
        sub_norm = self.state.get(f"{name}.rms_norm.weight")
        if sub_norm is not None and self.broken != "SubLN":
            weight = torch.ones_like(sub_norm) if self.broken == "SubLN weight" else sub_norm
            x = self.rms_norm(x, weight, 1e-6 if self.broken == "SubLN epsilon" else SUB_NORM_EPS)
        weight = self.ternary_weight(self.state[f"{name}.weight"])
        s = 127 / x.abs().max(-1, keepdim=True).values.clamp(min=1e-5)
        if self.broken == "int8":
            x_q = x * s
        elif self.broken is not None:
            x_q = torch.round(x * s)
        else:
            x_q = self.rounded[name]
            assert (x_q - x * s).abs().max() < 0.5 + 1e-3, name
        return x_q @ weight.T / s + self.state[f"{name}.bias"]

    def rotate(self, x, base=10000.0):
        """RoPE: the pair (x_i, x_{i + d/2}) of the token at position p turns by the angle p * base^(-2i/d)."""
        length, width = x.shape[-2:]
        angles = torch.outer(torch.arange(length).double(), base ** (-2 * torch.arange(width // 2).double() / width))
        pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def attention(self, x, prefix):
        heads, kv_heads = OPTIONS["num_attention_heads"], OPTIONS["num_key_value_heads"]
        batch, length, width = x.shape
        d = width // heads
        q, k, v = (
            self.project(x, f"{prefix}.{name}_proj").view(batch, length, -1, d).transpose(1, 2) for name in "qkv"
        )
        if self.broken != "RoPE":
            q, k = self.rotate(q), self.rotate(k)
        out = []
        for head in range(heads):
            kv = head % kv_heads if self.broken == "head groups" else head // (heads // kv_heads)
            scores = q[:, head] @ k[:, kv].transpose(1, 2) / math.sqrt(d)
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            out.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, kv])
        return self.project(torch.cat(out, dim=-1), f"{prefix}.o_proj")

    def mlp(self, x, prefix):
        gate, up = (self.project(x, f"{prefix}.{name}_proj") for name in ("gate", "up"))
        return self.project(gate * torch.sigmoid(gate) * up, f"{prefix}.down_proj")

    def logits(self, tokens):
        state, eps = self.state, OPTIONS["rms_norm_eps"]
        x = state["model.embed_tokens.weight"][tokens]
        for layer in range(2):
            prefix = f"model.layers.{layer}"
            x = x + self.attention(
                self.rms_norm(x, state[f"{prefix}.input_layernorm.weight"], eps), f"{prefix}.self_attn"
            )
            x = x + self.mlp(
                self.rms_norm(x, state[f"{prefix}.post_attention_layernorm.weight"], eps), f"{prefix}.mlp"
            )
        return self.rms_norm(x, state["model.norm.weight"], eps) @ state["lm_head.weight"].T


def make_student(sub_norm, **options):
    student = tiny_model("llama", **OPTIONS)
    student = apply_bitnet(student, BitNetConfig(sub_norm=sub_norm, sub_norm_eps=SUB_NORM_EPS, **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "rms_norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return student.eval()


def run_with_roundings(student, tokens):
    """Logits, and what the input of every projection (behind its SubLN) is rounded to."""
    rounded, hooks = {}, []

    def keep(name):
        def hook(module, args, output):
            x = output if name.endswith(".rms_norm") else args[0]
            s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            rounded[name.removesuffix(".rms_norm")] = torch.round(x * s).double()

        return hook

    for name, module in student.named_modules():
        if isinstance(module, BitLinear):
            inner = module.rms_norm
            hooks.append((inner or module).register_forward_hook(keep(name + (".rms_norm" if inner else ""))))
    with torch.no_grad():
        logits = student(tokens).logits.double()
    for hook in hooks:
        hook.remove()
    return logits, rounded


@pytest.mark.parametrize("sub_norm", ["output", "all"])
@pytest.mark.parametrize("options", GRANULARITIES, ids=lambda options: options["weight_granularity"])
def test_a_student_computes_the_formulas(sub_norm, options):
    student, tokens = make_student(sub_norm, **options), random_tokens()
    norms = [name for name, _ in student.named_parameters() if name.endswith("rms_norm.weight")]
    assert len(norms) == (2 * 2 if sub_norm == "output" else 2 * 7)
    logits, rounded = run_with_roundings(student, tokens)
    assert len(rounded) == 2 * 7
    state = {name: parameter.detach().double() for name, parameter in student.named_parameters()}
    granularity = options.get("group_size", options["weight_granularity"])

    expected = Reference(state, granularity, rounded).logits(tokens)
    scale = expected.std().item()
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)
    # In training the same, and packed too.
    student.train()
    training, rounded = run_with_roundings(student, tokens)
    expected = Reference(state, granularity, rounded).logits(tokens)
    torch.testing.assert_close(training, expected, rtol=0, atol=1e-5 * scale)
    with torch.no_grad():
        packed = pack(student, table_bits=32)(tokens).logits.double()
    torch.testing.assert_close(packed, logits, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "part",
    ["clip", "weight scale", "int8", "SubLN", "SubLN weight", "SubLN epsilon", "RoPE", "head groups"],
)
def test_the_comparison_would_notice_a_missing(part):
    student, tokens = make_student("output"), random_tokens()
    logits, _ = run_with_roundings(student, tokens)
    state = {name: parameter.detach().double() for name, parameter in student.named_parameters()}
    wrong = Reference(state, "tensor", {}, broken=part).logits(tokens)
    # The tolerance above is 1e-5.
    assert (wrong - logits).abs().max() > 1e-3 * logits.std()
