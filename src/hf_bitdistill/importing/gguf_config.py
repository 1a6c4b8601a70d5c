"""What the metadata of a GGUF file says of the model: its configuration in transformers, or why it is not imported.

Only what is listed here is understood. A key of the architecture that is not is refused by its name, because it may change what the model
computes; so is any declaration of a rotation, without which rotated weights give nonsense.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..architectures import GGUF_GRAPHS, GgufGraph
from ..files.tensor_headers import CheckpointError
from ..gguf_format import tensor_names as names
from ..modeling.preflight import check_sizes
from .gguf_reading import GgufFile, Strings


EMBEDDING = f"{names.EMBEDDING}.weight"

_ROTATION = re.compile(rb"hadamard|rotation|rotated|quarot|spinquant", re.IGNORECASE)
# Whose values are text about the model, or the tokenizer's, and declare nothing.
_FREE_TEXT = re.compile(
    r"tokenizer\.|quantize\.imatrix\.|general\.(name|author|version|organization|basename|finetune|description|quantized_by|size_label|license"
    r"|url|repo_url|doi|uuid|source|base_model|datasets?|tags|languages)(\.|$)"
)
# What says nothing about the computation of these architectures, and what must be as given where it is said.
_IDLE = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
_FIXED: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "use_parallel_residual": False,
    "attention.sliding_window": 0,
    "attention.max_alibi_bias": 0.0,
    "attention.clamp_kqv": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}
_REQUIRED = (
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
# The context of a model before it was lengthened: Llama 3's first.
_ORIGINAL_LENGTHS = (8192, *(1 << power for power in range(4, 18) if power != 13))


class _Keys:
    """The keys of an architecture, and which of them were asked for."""

    def __init__(self, file: GgufFile, architecture: str):
        self.file, self._prefix = file, f"{architecture}."
        self._values = {
            key.removeprefix(self._prefix): value
            for key, value in file.metadata.items()
            if key.startswith(self._prefix)
        }
        self._asked = set(_IDLE)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        self._asked.add(key)
        value = self._values.get(key)
        if value is None:
            if key in _REQUIRED:
                raise CheckpointError(f"{self.file.path}: the key {self._prefix + key!r} is missing.")
            return default
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # one for each layer, all the same
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (isinstance(value, str) if kind is str else number and (kind is float or isinstance(value, int))):
            shown = "a list" if isinstance(value, list) else repr(value)
            raise CheckpointError(f"{self.file.path}: {self._prefix + key} is {shown}, which is not understood.")
        least, most = (int(key in _REQUIRED), 1 << 24) if kind is int else (0, 1 << 40)
        if number and not least <= value <= most:
            raise CheckpointError(
                f"{self.file.path}: {self._prefix + key}={value} must be between {least} and {most}."
            )
        return value

    def check_rest(self) -> None:
        for key, value in self._values.items():
            if key in _FIXED and value == _FIXED[key]:
                continue
            if key in _FIXED or key not in self._asked:
                raise CheckpointError(
                    f"{self.file.path}: {self._prefix + key}={value!r} asks for what is not understood: nothing was imported."
                )


def graph_of(file: GgufFile) -> GgufGraph:
    """The graph of a file that can be imported.

    Raises:
        CheckpointError: an architecture that is not known here, a declared rotation, or a part of a model that is in several files.
    """
    if declared := _declared_rotation(file):
        raise CheckpointError(
            f"{file.path}: {declared} declares weights in a rotated basis, which this library does not compute: nothing was imported."
        )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            f"{file.path}: is one of {file.metadata['split.count']} files of a model: merge them first (llama-gguf-split --merge)."
        )
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in GGUF_GRAPHS:
        known = ", ".join(GGUF_GRAPHS)
        raise CheckpointError(f"{file.path}: the architecture {name!r} is not imported; there are {known}.")
    return GGUF_GRAPHS[name]


def _declared_rotation(file: GgufFile) -> str | None:
    """What says that weights are rotated: a key by its name, or by its string or one of its strings."""
    for key, value in file.metadata.items():
        if _ROTATION.search(key.encode()):
            return f"the key {key!r}"
        is_text = isinstance(value, (str, Strings)) and not _FREE_TEXT.match(key)
        if is_text and (found := _ROTATION.search(file.entry(key))):
            return f"the key {key!r}, which says {bytes(found[0]).decode()!r},"
    return None


def config_of(file: GgufFile) -> PreTrainedConfig:
    """The configuration of a file's model in transformers.

    Raises:
        CheckpointError: as [`graph_of`]; a key is missing, or says what is not understood; names it.
    """
    graph = graph_of(file)
    keys = _Keys(file, graph.name)
    embedding = file.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: tensor {EMBEDDING!r} is missing.")
    heads, width = keys.get("attention.head_count", int), keys.get("embedding_length", int)
    head_dim = keys.get("attention.key_length", int, width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (value := keys.get(key, int, head_dim)) != head_dim:
            raise CheckpointError(f"{file.path}: {key} is {value} and not {head_dim}, as the keys' length is.")
    layers = keys.get("block_count", int)
    if f"{names.in_layer(layers - 1, names.ATTENTION_NORM)}.weight" not in file.tensors:
        raise CheckpointError(
            f"{file.path}: block_count is {layers}, and the tensors are not those of as many layers."
        )
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": keys.get("feed_forward_length", int),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", int, heads),
        "max_position_embeddings": keys.get("context_length", int, 2048),
        "rms_norm_eps": keys.get("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, keys),
        "dtype": torch.float32,
        **_token_ids(file),
    }
    options = {
        "head_dim": head_dim,
        "attention_bias": f"{names.in_layer(0, names.Q)}.bias" in file.tensors,
        "mlp_bias": f"{names.in_layer(0, names.UP)}.bias" in file.tensors,
    }
    values |= {key: options[key] for key in graph.config_keys}
    if "head_dim" not in graph.config_keys and head_dim * heads != width:
        raise CheckpointError(
            f"{file.path}: keys of {head_dim} are not those of a {graph.model_type} model ({width} / {heads})."
        )
    keys.check_rest()
    try:
        config = AutoConfig.for_model(graph.model_type, **values)
    except Exception as error:  # whatever a config class raises for values that it does not expect
        line = " ".join(str(error).split())
        raise CheckpointError(f"{file.path}: transformers makes no config of its metadata ({line}).") from error
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[graph.model_type]]
    check_sizes(config, str(file.path))
    return config


def _rope(file: GgufFile, keys: _Keys) -> dict[str, Any]:
    """The rotary embedding as transformers is told of it."""
    theta = keys.get("rope.freq_base", float, 10000.0)
    kind = keys.get("rope.scaling.type", str, "linear")
    factor = keys.get("rope.scaling.factor", float, 0.0) or keys.get("rope.scale_linear", float, 0.0) or 1.0
    original = keys.get("rope.scaling.original_context_length", int)
    attention = keys.get("rope.scaling.attn_factor", float, 1.0)
    fast, slow = (keys.get(f"rope.scaling.yarn_beta_{name}", float) for name in ("fast", "slow"))
    if kind == "none" or (kind == "linear" and factor == 1.0 and attention == 1.0):
        return {"rope_theta": theta, "rope_type": "default"}
    if kind == "linear" and attention == 1.0:
        return {"rope_theta": theta, "rope_type": "linear", "factor": factor}
    if kind != "yarn" or original is None or factor <= 1.0:
        raise CheckpointError(
            f"{file.path}: rope.scaling.type={kind!r} with factor {factor:g}, attn_factor {attention:g} and original_context_length "
            f"{original} is not understood: nothing was imported."
        )
    scaling = {
        "rope_theta": theta,
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    if attention != 1.0:
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    if fast is not None:
        scaling["beta_fast"] = fast
    if slow is not None:
        scaling["beta_slow"] = slow
    return scaling


def read_frequencies(file: GgufFile, config: PreTrainedConfig, factors: np.ndarray) -> None:
    """Put into `config` the options of Llama 3's rotary embedding, of which a file only has the result: by what each frequency is divided.

    Args:
        factors: float32 `[head_dim / 2]`, the tensor [`names.FREQUENCIES`].

    Raises:
        CheckpointError: they are those of no published model.
    """
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    is_plain = config.rope_parameters["rope_type"] == "default"
    if is_plain and factors.shape == plain.shape and np.isfinite(factors).all() and factors.min() >= 1:
        for original in _ORIGINAL_LENGTHS:
            options = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
            config.rope_parameters.update(options, rope_type="llama3", factor=float(factors.max()))
            found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
            if np.allclose(plain / factors, found.double().numpy(), rtol=1e-4, atol=0):
                return
    raise CheckpointError(
        f"{file.place(names.FREQUENCIES)} is not that of Llama 3's rotary embedding (low_freq_factor 1, high_freq_factor 4): nothing was imported."
    )


def _token_ids(file: GgufFile) -> dict[str, int | None]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: _token_id(file, key) for name, key in names.items()}


def _token_id(file: GgufFile, key: str) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    vocabulary = file.tensors[EMBEDDING].shape[0]
    return value if isinstance(value, int) and 0 <= value < vocabulary else None


def generation_config_of(file: GgufFile, config: PreTrainedConfig) -> GenerationConfig:
    """What the file says of generation: tokens that end it, and how its makers sample."""
    generation = GenerationConfig.from_model_config(config)
    ends = [_token_id(file, key) for key in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in ends if token is not None))
    if ends:
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    for key, name in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)) and value > 0:
            generation.do_sample = True
            setattr(generation, name, value)
    return generation
