"""Output folders: none is an input, and none holds a model that would be lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from transformers.utils import CONFIG_NAME

from .model_folder import check_output


# What is read besides models: a folder of data may hold the outputs of its runs.
_DATA = ("data_dir", "corpus", "dataset")


def check_output_dir(output: str | Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse an output folder that is an input, that lies inside or around a model that is read, or that holds a model in full precision.

    Args:
        inputs: option -> the folder or file that it names; Hub ids and `None` pass.

    Raises:
        ValueError: names the folder and the option.
    """
    output = Path(output).expanduser()
    if output.is_file():
        raise ValueError(f"output_dir {output} is a file")
    for name, given in inputs.items():
        if given is None:
            continue
        if name not in _DATA:
            check_output(output, **{name: given})
        if output.resolve() == Path(given).expanduser().resolve():
            raise ValueError(
                f"the output folder {output} is the {name.replace('_', ' ')} that is read: give another folder"
            )
    config = output / CONFIG_NAME
    if config.is_file():
        try:
            is_student = "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            is_student = True  # no model that could be lost: a save that was killed, which the run mends
        if not is_student:
            raise ValueError(
                f"the output folder {output} holds a model in full precision, which would be lost: give another folder"
            )
