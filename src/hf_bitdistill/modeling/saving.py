"""`save_pretrained` of a student: transformers' own, into a folder aside, with digests, which then takes its place; `push_to_hub`,
which publishes it packed; and `num_parameters`, which counts weights and not bytes.

transformers has no hook around them, so every student object carries its own, as instance attributes.
"""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .._compat import has_injected_adapters
from ..files.model_folder import replace_model
from ..nn.carried_adapters import adapted_modules
from .config_note import write_note
from .digests import add_digests
from .parameter_count import count_parameters


_HUB_OPTIONS = (
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
    "push_format",
    "tokenizer",
)
_OWN = ("save_pretrained", "push_to_hub", "num_parameters")  # attributes of a student that are its own


class _OfStudent:
    """A method of one student."""

    def __init__(self, model: PreTrainedModel):
        # A reference to its owner would keep the owner's memory until the garbage collector comes. But in `pack(model).save_pretrained`
        # the owner is gone before the call: then a second object takes its place, which shares all that the first one consisted of.
        self._model = weakref.ref(model)
        self._stand_in = object.__new__(type(model))
        self._stand_in.__dict__ = {key: value for key, value in vars(model).items() if key not in _OWN}

    def __getstate__(self) -> dict[str, Any]:
        # For pickle and deepcopy: the copy of a model has one for the copy.
        return {"model": self._model(), "stand_in": self._stand_in}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._stand_in = state["stand_in"]
        self._model = weakref.ref(self._stand_in if state["model"] is None else state["model"])

    def _owner(self) -> PreTrainedModel:
        model = self._model()
        if model is None:
            model = self._stand_in
            if not all(name in vars(model) for name in _OWN):
                save_safely(model)
        return model


class SaveStudent(_OfStudent):
    """What `student.save_pretrained` is. Takes the arguments of `PreTrainedModel.save_pretrained`.

    An older model in the folder is replaced at once, when the new one is complete (see [`replace_model`]). Each weight file
    records digests of its tensors, which are checked when it is loaded. With `push_to_hub=True` the student is published as
    [`PushStudent`] does it.

    Saved by transformers alone, without these promises: adapters (PEFT), and `distributed_checkpoint=True`.

    Raises:
        CheckpointError: a tensor holds a NaN or an infinity. Nothing was saved.
        NotADirectoryError: the folder is a file.
        ValueError: a packed model would take the place of the trainable student that it was made from; or the model has adapters that were
            injected by other means than transformers' own.
    """

    def __call__(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        model = self._owner()
        plain = type(model).save_pretrained
        if has_injected_adapters(model) or kwargs.get("distributed_checkpoint"):
            return plain(model, save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)
        adapted = adapted_modules(model)
        if adapted:
            raise ValueError(
                f"{type(model).__name__} carries adapters (in {adapted[0]!r} and {len(adapted) - 1} other modules), with which it is no student's "
                "checkpoint: save the adapters by save_pretrained of the PeftModel, and the student after its unload()."
            )
        folder = Path(save_directory)
        config = getattr(model.config, "quantization_config", None)
        _check_not_its_source(model, config, folder)
        hub = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs} if push_to_hub else {}
        repo_id = kwargs.pop("repo_id", folder.name) if push_to_hub else None
        if push_to_hub and state_dict is not None:
            raise ValueError("push_to_hub=True cannot be combined with state_dict: save, then upload the folder.")
        with replace_model(folder) as staging:
            plain(model, staging, is_main_process, state_dict, False, *args, **kwargs)
            if config is not None:  # (taken off by hand: what is saved is no student any more)
                add_digests(sorted(staging.glob("*.safetensors")), config)
                if (staging / CONFIG_NAME).is_file():  # (of the processes that save together, one writes it)
                    write_note(staging)
        if push_to_hub and is_main_process:
            size = {"max_shard_size": kwargs["max_shard_size"]} if "max_shard_size" in kwargs else {}
            own: Any = model.push_to_hub
            own(repo_id, **hub, **size)


class PushStudent(_OfStudent):
    """What `student.push_to_hub` is. Takes the arguments of `PreTrainedModel.push_to_hub`, and `push_format` and `tokenizer`.

    A student is published packed, whether or not it is: see [`~hf_bitdistill.push_to_hub`], also for what is raised. Adapters (PEFT) are
    published by transformers alone.
    """

    def __call__(self, repo_id: str, **options: Any) -> CommitInfo | None:
        model = self._owner()
        if has_injected_adapters(model):
            return type(model).push_to_hub(model, repo_id, **options)
        from ..hub import push_to_hub

        return push_to_hub(model, repo_id, **options)


class CountParameters(_OfStudent):
    """What `student.num_parameters` is: see [`count_parameters`]. Takes the arguments of `PreTrainedModel.num_parameters`."""

    def __call__(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        return count_parameters(self._owner(), only_trainable, exclude_embeddings)


class _Refusal:
    """A method that a model does not have.

    Raises:
        ValueError: always; says why.
    """

    def __init__(self, reason: str):
        self._reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(self._reason)


def _check_not_its_source(model: PreTrainedModel, config: Any, folder: Path) -> None:
    there = folder / CONFIG_NAME
    source = Path(model.name_or_path or "")
    if _mode(config) != "offline" or not there.is_file() or not model.name_or_path:
        return
    if not source.is_dir() or not source.samefile(folder):
        return
    try:
        quantization = json.loads(there.read_text(encoding="utf-8")).get("quantization_config")
    except ValueError:
        return
    if _mode(quantization) == "online":
        raise ValueError(
            f"{folder} holds the trainable student that this packed model was made from, and which would be lost: save it elsewhere."
        )


def _mode(config: Any) -> str | None:
    return config.get("quantization_mode") if isinstance(config, dict) else getattr(config, "quantization_mode", None)


def save_safely(student: PreTrainedModel) -> None:
    """Give a student its `save_pretrained`, its `push_to_hub` and its `num_parameters`."""
    instance: Any = student  # (its class's methods stay)
    instance.save_pretrained, instance.push_to_hub = SaveStudent(student), PushStudent(student)
    instance.num_parameters = CountParameters(student)


def save_plainly(model: PreTrainedModel, refusal: str | None = None) -> None:
    """Undo [`save_safely`], for what is no student any more.

    Args:
        refusal: why it cannot be saved, if so.
    """
    for name in _OWN:
        vars(model).pop(name, None)
    if refusal is not None:
        instance: Any = model
        instance.save_pretrained = instance.push_to_hub = _Refusal(refusal)
