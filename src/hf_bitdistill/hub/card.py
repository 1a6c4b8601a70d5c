"""What every card of a student says, and the card of one of which nothing else is known."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME

from ..config import is_classifier
from ..json_files import read_json


TAGS = ("bitdistill", "distillation")
TERNARY_TAGS = ("bitnet", "ternary")

CITATION = """@article{wu2025bitnetdistillation,
  title   = {BitNet Distillation},
  author  = {Wu, Xun and Huang, Shaohan and Wang, Wenhui and Song, Ting and Dong, Li and Xia, Yan and Wei, Furu},
  journal = {arXiv preprint arXiv:2510.13998},
  year    = {2025}
}"""

LOADING = """```python
import hf_bitdistill  # registers the quantizer: without this line transformers cannot load the checkpoint correctly
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}"{options})
```"""

WITHOUT_IMPORT = (
    "Programs that do not import hf_bitdistill (lm_eval, `transformers serve`) are started with `bitdistill exec -- PROGRAM`, or as ever "
    "after `bitdistill autoload on`."
)

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_FARTHEST = 5  # folders that name folders


def hub_model_id(name: str | None) -> str | None:
    """`name` if it can be the id of a model on the Hub; not a local folder (which nobody else can open)."""
    if name and not os.path.exists(name) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return name
    return None


def exact_model_id(name: str | os.PathLike | None) -> str | None:
    """The id on the Hub of the model that is named: an id, or its copy in the Hub's cache."""
    return hub_model_id(str(name)) or _of_cache(Path(name)) if name else None


def base_model_id(name: str | os.PathLike | None) -> str | None:
    """The id on the Hub of a base model that is named by its id, or by a folder that tells it: a copy in the Hub's cache, a card with a
    base model, a config.json that keeps the name of what it was saved from."""
    found = exact_model_id(name)
    for _ in range(_FARTHEST):
        if found is not None or not name:
            break
        folder = Path(name).expanduser()
        name = _of_card(folder / "README.md") or _of_config(folder / CONFIG_NAME)
        # (A single name in a file is more likely a folder of the machine that wrote it.)
        found = exact_model_id(name) if name and "/" in name else None
    return found


def _of_cache(folder: Path) -> str | None:
    match = next((match for part in folder.parts if (match := _CACHED.fullmatch(part))), None)
    return f"{match[1]}/{match[2]}" if match else None


def _of_card(card: Path) -> str | None:
    try:
        base = ModelCard.load(card, ignore_metadata_errors=True).data.base_model
    except (OSError, ValueError, yaml.YAMLError):
        return None
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) else None


def _of_config(config: Path) -> str | None:
    try:
        named = read_json(config).get("_name_or_path")
    except ValueError:
        return None
    return named if isinstance(named, str) else None


def plain_card(name: str, config: Any, base: str | None, push_format: str = "packed", tags: Sequence[str] = ()) -> str:
    """A card that says what the model is, from its configuration, and how it is loaded: no more is known.

    Args:
        name: of the repository.
        config: of the model.
        base: its base model's id.
        push_format: of the upload.
    """
    ternary = getattr(config, "quantization_config", None) is not None
    classification = is_classifier(config)
    auto_class = "AutoModelForSequenceClassification" if classification else "AutoModelForCausalLM"
    data = ModelCardData(
        library_name="transformers",
        base_model=base,
        base_model_relation=("quantized" if ternary else "finetune") if base else None,
        pipeline_tag="text-classification" if classification else "text-generation",
        tags=list(dict.fromkeys([TAGS[0], *(TERNARY_TAGS if ternary else ()), *tags])),
    )
    kind = "ternary (1.58-bit) student" if ternary else "model"
    of = f" of [{base}](https://huggingface.co/{base})" if base else ""
    parts = [f"# {name.split('/')[-1]}", f"A {kind}{of}, made with hf-bitdistill."]
    if not ternary:
        return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    parts.insert(1, "Needs `pip install hf-bitdistill` and `import hf_bitdistill` before it is loaded.")
    parts += ["## Loading", WITHOUT_IMPORT]
    if push_format != "online":
        parts.append(LOADING.format(auto_class=auto_class, name=name, options=""))
    if push_format != "packed":
        parts += [
            "The trainable student, with the latent weights that the ternary ones are rounded from, is in the folder `online`:",
            LOADING.format(auto_class=auto_class, name=name, options=', subfolder="online"'),
        ]
    body = "\n\n".join(parts)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def add_tags(card: str, tags: Sequence[str]) -> str:
    """A card with tags added to its metadata.

    Raises:
        ValueError: its metadata is damaged.
    """
    try:
        loaded = ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"README.md: its metadata cannot be read ({' '.join(str(error).split())})") from error
    loaded.data.tags = list(dict.fromkeys([*(loaded.data.tags or []), *tags]))
    return str(loaded)
