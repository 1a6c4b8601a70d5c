"""What is private in the libraries that this one stands on, in one place.

A name that begins with an underscore may change with any release. So each is used here alone, by a function that says what for and in which
versions it was seen, and that has a test of its own. What a class of ours overrides or calls of a base class cannot be a function: those
are listed in [`IN_SUBCLASSES`][hf_bitdistill._compat.IN_SUBCLASSES], and a test compares them with the installed versions.

Versions: transformers 5.20 to 5.24, accelerate 1.10 to 1.15, datasets 4.8.4 to 5.2, huggingface_hub 1.31 to 2.4, torch 2.9 to 2.13, unless
something else is said.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# (Every operator that is called, and the tensors that it returns: no public module has these.)
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves


# ---- transformers: files ----


def cached_file_or_none(name: Any, file: str, *, offline: bool = False, **hub: Any) -> str | None:
    """`cached_file` of transformers, which has an argument against raising, but no public one.

    Args:
        name: folder or Hub id.
        offline: no error where the Hub cannot be reached either.
        hub: options of `from_pretrained`.

    Returns:
        The file's path; `None`: the model has none of that name.
    """
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False}
    if offline:
        quiet["_raise_exceptions_for_connection_errors"] = False
    return cached_file(name, file, **hub, **quiet)


def commit_of(config: Any) -> str | None:
    """The commit that a config of transformers came from, where the installed version notes it."""
    return getattr(config, "_commit_hash", None)


# ---- transformers: models ----


def is_initialized(tensor: Tensor) -> bool:
    """Whether transformers has loaded a tensor: it marks those, so as not to initialise them."""
    return getattr(tensor, "_is_hf_initialized", False)


def weight_conversions(model: nn.Module) -> list | None:
    """By which conversions transformers loaded a model, and will revert when it saves; `None`: it was not loaded."""
    return getattr(model, "_weight_conversions", None)


def set_weight_conversions(model: nn.Module, conversions: list) -> None:
    """Make `save_pretrained` revert these."""
    model._weight_conversions = conversions  # type: ignore[assignment]  # transformers does not declare it


def forget_quantization(model: nn.Module) -> None:
    """Take the note away that a model, or a model in it, is quantised: with it `.float()` and others are refused."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module.config, "_is_quantized"):
            del module.config._is_quantized


def optional_names(model: nn.Module) -> set[str]:
    """Patterns of names of tensors that a checkpoint need not have."""
    return set(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())


def add_optional_names(model: nn.Module, patterns: Iterable[str]) -> None:
    """Tell transformers not to warn where a checkpoint lacks tensors of these names."""
    model._keys_to_ignore_on_load_missing = optional_names(model) | set(patterns)  # type: ignore[assignment]  # transformers does not declare it


def names_in_float32(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Parts of names of the parameters that transformers keeps in float32 when it loads a model in `dtype`."""
    if dtype == torch.float32:
        return set()
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return names


def undivided_classes(model: nn.Module) -> set[str]:
    """Names of the classes of a model's layers, which its architecture says must not be split over devices."""
    return set(getattr(model, "_no_split_modules", None) or ())


def forget_tied_names(model: nn.Module) -> None:
    """Of a model without parameters to tie: transformers would look for them by the names that its class has."""
    model._tied_weights_keys = None  # type: ignore[assignment]  # transformers does not declare it


def restore_tied_names(model: nn.Module) -> None:
    """Undo [`forget_tied_names`]."""
    model.__dict__.pop("_tied_weights_keys", None)


def has_injected_adapters(model: nn.Module) -> bool:
    """Whether transformers itself put adapters into a model (`add_adapter`, `load_adapter`)."""
    return getattr(model, "_hf_peft_config_loaded", False)


def gated_activation(fused: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """What fused experts make of `[..., 2 I]`, gate and up: the function of their class, as `function(experts, gate_and_up)`."""
    kind: Any = type(fused)
    return kind._apply_gate


def mark_as_given(cache: Any) -> None:
    """Tell `generate` that a cache is its caller's, so that it is returned."""
    cache._is_user_defined = True


# ---- transformers: attention ----


def has_attention_implementation(config: Any) -> bool:
    """Whether a config says by which function attention is computed."""
    return hasattr(config, "_attn_implementation")


def attention_implementation(config: Any) -> str | None:
    """The name of the function by which attention is computed; modelling files look it up at every call."""
    return getattr(config, "_attn_implementation", None)


def set_attention_implementation(config: Any, name: str | None) -> None:
    """Change it for one config. The public `set_attn_implementation` would also reach into sub-configs (a vision tower's, say)."""
    config._attn_implementation_internal = name


# ---- transformers: its server ----


def server_thread(serve: Any) -> threading.Thread:
    """The thread of a `transformers.cli.serve.Serve` with `non_blocking=True`."""
    return serve._thread


def generation_options(state: Any) -> dict[str, Any]:
    """With which options a `GenerationState` of transformers' server was made."""
    return {
        "continuous_batching": state._continuous_batching,
        "compile": state._compile,
        "cb_config": state._cb_config,
    }


# ---- accelerate ----


def forget_prepared(accelerator: Any, model: nn.Module) -> None:
    """Make `accelerator.prepare` wrap a model that it has prepared for an evaluation."""
    if getattr(model, "_is_accelerate_prepared", False):
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        del model._is_accelerate_prepared


def set_original_forward(model: nn.Module, forward: Callable) -> None:
    """Note the forward that was replaced, by the name by which `Accelerator.unwrap_model` puts it back."""
    model._original_forward = forward  # type: ignore[assignment]  # accelerate does not declare it


def take_out(accelerator: Any, prepared: nn.Module) -> None:
    """Take a model out of the list of those that an `Accelerator` saves, clips and counts."""
    accelerator._models = [model for model in accelerator._models if model is not prepared]


# ---- datasets, huggingface_hub ----


def is_split_by_process(dataset: Any) -> bool:
    """Whether a stream is the part of one process (`split_dataset_by_node`)."""
    return getattr(dataset, "_distributed", None) is not None


def is_known_to_be_missing(answer: Any) -> bool:
    """Whether `try_to_load_from_cache` of huggingface_hub says that the Hub was asked and has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST

    return answer is _CACHED_NO_EXIST


# ---- torch ----

# As `__torch_function__` of a class: operators give ordinary tensors, and cost what they always cost.
NO_TORCH_FUNCTION: Any = torch._C._disabled_torch_function_impl


def uncompiled(module: Any) -> Any:
    """The module that `torch.compile` wrapped, or the one that was given."""
    return getattr(module, "_orig_mod", module)


def version_of(tensor: Tensor) -> int:
    """How often the values of a tensor were written to, its views included. Raises `RuntimeError` for one made in inference mode."""
    return tensor._version


def keeps_version(tensor: Tensor) -> AbstractContextManager:
    """Within it, writing to a tensor does not count: what autograd saved of it is in its place again afterwards."""
    return torch.autograd._unsafe_preserve_version_counter(tensor)


def backward_pass() -> int:
    """Which one this thread computes gradients in at the moment; -1: in none."""
    return torch._C._current_graph_task_id()


def is_in_backward() -> bool:
    """Whether this thread computes gradients at the moment."""
    return backward_pass() != -1


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution of any number of dimensions."""
    return isinstance(module, nn.modules.conv._ConvNd)


def forget_parameters(module: nn.Module) -> None:
    """Of a shallow copy: give it no parameters, and leave those of the original alone."""
    module._parameters = {}


def local_tensor(tensor: Any) -> Tensor:
    """This process's part of a `DTensor`, the very object. (`to_local` gives a view of it where gradients are computed.)"""
    return tensor._local_tensor


def set_local_tensor(tensor: Any, local: Tensor) -> None:
    """Replace this process's part of a `DTensor`."""
    tensor._local_tensor = local


def fake_tensors() -> AbstractContextManager:
    """Within it, operators compute shapes and dtypes alone, without memory. Real tensors may take part."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


# ---- in subclasses ----


@dataclass(frozen=True)
class Inherited:
    """Something private of a library's class that a class of ours overrides, calls or sets.

    Attributes:
        owner: module and class of the library.
        name: its name.
        parameters: those that we rely on, in this order, without `self` or `cls`; `None`: it is no function.
        why: what for.
        needs: a package without which the owner cannot be imported, and that not everybody has.
    """

    owner: str
    name: str
    parameters: tuple[str, ...] | None
    why: str
    needs: str | None = None


_TRAINER = "transformers.Trainer"
_QUANTIZER = "transformers.quantizers.HfQuantizer"
_GENERATION = "transformers.GenerationMixin"
_OPTIMUM = "optimum.modeling_base.OptimizedModel"
_MANAGER = "transformers.cli.serving.model_manager.ModelManager"
_SERVE = "transformers.cli.serve.Serve"
_MODULE = "torch.nn.Module"
_DECODE = ("input_ids", "logits_processor", "stopping_criteria", "generation_config")
_MODEL_ID = ("model_id_and_revision",)

IN_SUBCLASSES = (
    # Checkpoints are written aside, of whole weights, and one is chosen to go on from.
    Inherited(_TRAINER, "_save_checkpoint", ("model", "trial"), "a checkpoint is whole or absent"),
    Inherited(_TRAINER, "_get_output_dir", ("trial",), "it is written aside"),
    Inherited(_TRAINER, "_save", ("output_dir", "state_dict"), "weights that were gathered from shards"),
    Inherited(_TRAINER, "save_model", ("output_dir", "_internal_call"), "a call of its own pushes nothing"),
    Inherited(_TRAINER, "_save_rng_state", ("output_dir",), "the place in a stream is saved beside it"),
    Inherited(_TRAINER, "_load_rng_state", ("checkpoint",), "a damaged file is named; streams load it once more"),
    Inherited(_TRAINER, "_load_scaler", ("checkpoint",), "a damaged file is named"),
    Inherited(_TRAINER, "_load_optimizer_and_scheduler", ("checkpoint",), "a damaged file is named"),
    Inherited(_TRAINER, "_push_from_checkpoint", ("checkpoint_folder",), "what is pushed is packed"),
    Inherited(_TRAINER, "_finish_current_push", (), "one push after another"),
    # Batches and steps.
    Inherited(_TRAINER, "_get_grad_norm", ("model",), "a step that is not finite is skipped"),
    Inherited(_TRAINER, "_prepare_inputs", ("inputs",), "a batch is looked at again"),
    Inherited(_TRAINER, "_prepare_input", ("data",), "inputs that a metric asks for"),
    Inherited(_TRAINER, "_set_signature_columns_if_needed", (), "a row of a stream keeps its place"),
    Inherited(_TRAINER, "_signature_columns", None, "the same"),
    Inherited("transformers.TrainingArguments", "_VALID_DICT_FIELDS", None, "a dict on a command line"),
    # Loading.
    Inherited(_QUANTIZER, "_process_model_before_weight_loading", ("model",), "surgery, checks of files"),
    Inherited(_QUANTIZER, "_process_model_after_weight_loading", ("model",), "checks of contents, heads"),
    Inherited(_QUANTIZER, "_dequantize", ("model", "dtype"), "model.dequantize()"),
    Inherited("transformers.PreTrainedModel", "_is_hf_initialized", None, "a module with nothing to initialise"),
    # generate() on the native decoder.
    Inherited(_GENERATION, "_prepare_generation_config", ("generation_config",), "options that it cannot honour"),
    Inherited(
        _GENERATION, "_prepare_cache_for_generation", ("generation_config", "model_kwargs"), "a cache of its own"
    ),
    Inherited(_GENERATION, "_prefill", ("input_ids", "generation_config"), "a prompt is not cut up"),
    Inherited(_GENERATION, "_sample", _DECODE, "greedy decoding, sampling, the end of the context"),
    Inherited(_GENERATION, "_beam_search", _DECODE, "the end of the context"),
    Inherited(_GENERATION, "_assisted_decoding", _DECODE, "the end of the context"),
    Inherited(_GENERATION, "_get_candidate_generator", ("generation_config",), "how many candidates are read"),
    Inherited(_GENERATION, "_is_stateful", None, "a cache can be cut back"),
    Inherited(_OPTIMUM, "_from_pretrained", ("model_id",), "how it is loaded"),
    Inherited(_OPTIMUM, "_export", ("model_id", "config"), "an online student"),
    Inherited(_OPTIMUM, "_save_pretrained", ("save_directory",), "the packed files"),
    # transformers' server.
    Inherited(_MANAGER, "_load_model", _MODEL_ID, "ternary models on the native decoder"),
    Inherited(_MANAGER, "_load_processor", _MODEL_ID, "a warning about a missing template"),
    Inherited(_SERVE, "_model_manager", None, "what it makes gives way to ours", needs="fastapi"),
    Inherited(_SERVE, "_generation_state", None, "what it makes gives way to ours", needs="fastapi"),
    # Others.
    Inherited(_MODULE, "_apply", ("fn", "recurse"), "scales that are moved and not rounded"),
    Inherited(_MODULE, "_load_from_state_dict", ("state_dict", "prefix"), "a layout in memory is made again"),
    Inherited(_MODULE, "_save_to_state_dict", ("destination", "prefix", "keep_vars"), "names as in a file"),
    Inherited(_MODULE, "_buffers", None, "the tensors that a module has now, without a lookup"),
    Inherited("evaluate.Metric", "_info", (), "what a metric is"),
    Inherited("evaluate.Metric", "_compute", ("predictions", "references"), "what it computes"),
    Inherited("lm_eval.models.huggingface.HFLM", "_create_model", ("pretrained",), "its model", needs="lm_eval"),
)
