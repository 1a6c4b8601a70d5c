"""A GGUF file in the place of a model's folder: imported into a temporary one, which lives as long as the model."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, cast

from transformers.utils import cached_file


logger = logging.getLogger(__name__)


def gguf_file_of(model_id: str, gguf_file: str | None, hub: dict[str, Any]) -> Path | None:
    """The file that is meant by `from_pretrained("model.gguf")` or, as in transformers, by `gguf_file="model.gguf"` in a folder or a
    repository of the Hub; `None` where none is.

    Raises:
        OSError: there is no such file.
    """
    if gguf_file is not None:
        return Path(cast(str, cached_file(model_id, gguf_file, **hub)))  # (it raises where there is none)
    path = Path(model_id).expanduser()
    if path.suffix.lower() != ".gguf" or path.is_dir():
        return None
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {model_id}.")
    return path


class TemporaryImport:
    """The student of a GGUF file in a folder that is removed with its owner.

    Raises:
        As [`hf_bitdistill.importing.import_gguf`].
    """

    def __init__(self, file: Path):
        from hf_bitdistill.importing import import_gguf

        self.file = file
        self.folder = tempfile.mkdtemp(prefix="bitdistill-gguf-")
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        found = import_gguf(file, self.folder, answers=False)
        said = [f"{len(found.kept)} linear layers are not ternary and stay in full precision"] if found.kept else []
        if found.quantization.sub_norm == "none":
            said.append("activations are rounded to 8 bits, which a weight-only model was not made for")
        if said:
            logger.warning(f"{file}: {'; '.join(said)} (bitdistill import gguf tells more, and has a choice).")
