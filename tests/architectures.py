"""Tiny random models of every architecture the tests promise to support."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


VOCAB_SIZE = 96
_TOKENS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GEMMA = {**_LLAMA, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 16}
_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 12}


def small_llama(**options) -> LlamaConfig:
    """A config for tests that need few tokens and no grouped queries: width 32, 2 layers, 4 heads, padding 0; `options` win."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return LlamaConfig(**{**sizes, "pad_token_id": 0, **options})


# model_type -> options of its config
ARCHITECTURES: dict[str, dict] = {
    "llama": {**_LLAMA, "tie_word_embeddings": True},
    "mistral": {**_LLAMA, "head_dim": 12},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 16},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "smollm3": _LLAMA,
    "olmo2": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "opt": {**_NEOX, "ffn_dim": 88, "word_embed_proj_dim": 48},
    "falcon": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bitnet": _LLAMA,
    "qwen3_5_text": {
        **_LLAMA,
        **_LINEAR_ATTENTION,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "qwen3_moe": {**_LLAMA, **_EXPERTS, "num_experts": 4},
    # Weights have other names in files.
    "mixtral": {**_LLAMA, **_EXPERTS, "num_local_experts": 4, "intermediate_size": 40},
    # Gate and up take turns, weights are transposed, projections have biases.
    "gpt_oss": {
        **_LLAMA,
        **_EXPERTS,
        "num_local_experts": 4,
        "intermediate_size": 40,
        "rope_parameters": {"rope_type": "default"},
    },
}

_GPTJ = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8}
_BLOOM = {"hidden_size": 48, "n_layer": 2, "n_head": 4}

# The same of those that have a record too, and nothing that any other would not show.
MORE: dict[str, dict] = {
    "diffllama": _LLAMA,
    "hunyuan_v1_dense": {**_LLAMA, "head_dim": 12},
    "stablelm": {**_LLAMA, "partial_rotary_factor": 0.5},
    "afmoe": {**_LLAMA, **_EXPERTS, "num_experts": 4, "num_local_experts": 4},
    "granitemoe": {**_LLAMA, "num_local_experts": 4, "intermediate_size": 40},
    "granitemoeshared": {
        **_LLAMA,
        "num_local_experts": 4,
        "intermediate_size": 40,
        "shared_intermediate_size": 40,
    },
    "hunyuan_v1_moe": {**_LLAMA, "head_dim": 12, "num_experts": 4, "moe_topk": 2},
    "phimoe": {**_LLAMA, "num_local_experts": 4, "intermediate_size": 40},
    "gpt_bigcode": _GPT2,
    "openai-gpt": _GPT2,
    "gpt_neo": {
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "biogpt": _NEOX,
    "xglm": {"d_model": 48, "ffn_dim": 88, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64},
    "bloom": _BLOOM,
    "gpt_neox_japanese": {**_NEOX, "intermediate_multiple_size": 2},
    "persimmon": _NEOX,
    "mpt": {"d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
}

# With several experts a layer.
MIXTURES = {"qwen3_moe", "mixtral", "gpt_oss"}

# Whose layers are not all alike.
HYBRID = {"qwen3_5_text"}


def tiny_config(model_type: str, **overrides):
    return CONFIG_MAPPING[model_type](**{**_TOKENS, **(ARCHITECTURES | MORE)[model_type], **overrides})


def tiny_model(model_type: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random causal LM in eval mode, its norms moved off one so that a dropped or doubled norm shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def random_tokens(batch: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))


def rows_in_every_layout() -> list[dict[str, torch.Tensor]]:
    """The same four rows: padded on the right, on the left, and packed."""
    rows = [random_tokens(1, length, seed=length)[0] for length in (9, 4, 14, 7)]
    sides = []
    for left in (False, True):
        ids = torch.zeros(4, 14, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(14 - len(row), 14) if left else slice(len(row))
            ids[index, place], mask[index, place] = row, 1
        sides.append({"input_ids": ids, "attention_mask": mask})
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    return [*sides, {"input_ids": torch.cat(rows)[None], "position_ids": positions, "labels": torch.cat(rows)[None]}]
