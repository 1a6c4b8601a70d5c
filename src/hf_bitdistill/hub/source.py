"""What is published of a folder or of a model: path in the repository -> local file or content."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..config import QUANT_METHOD
from ..files.json_files import read_json
from ..files.model_folder import (
    EVALUATION_FILE,
    PACKED,
    RECORDS,
    REFERENCE_FILE,
    RESULT_FILE,
    STAGES,
    WARM_START_REPORT,
)
from ..files.weight_files import EXPLICIT_NAME, local_weight_files
from ..modeling.locate import find_model
from ..modeling.model_heads import auto_class, head_of
from ..modeling.pack import pack
from ..verify import save_packed
from .cards import CARD
from .scrubbing import check_no_secret, scrub, scrub_values


Files = dict[str, Path | bytes]

ONLINE_FOLDER, TRAINING_LOG = "online", "training_log.json"

#: Form of an upload -> the folders of the repository that a student lies in.
FORM_FOLDERS = {"packed": ("",), "online": (ONLINE_FOLDER,), "both": ("", ONLINE_FOLDER)}
# Only what is named here is published: a folder of a training holds much that is nobody's business.
_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates/*",
    "spiece*", "sentencepiece*", "tekken*",
)  # fmt: skip
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
# What was measured of one student, and so is of no other: texts and pictures.
_MEASURED = (EVALUATION_FILE, "*_results.json", RESULT_FILE, WARM_START_REPORT, "report.html", ".eval_results/*.yaml")
_PICTURES = ("report/*.png", "report/*.svg")
# Written by people, or by this library for people: local paths are taken out of them.
_DOCUMENTS = (CARD, "LICENSE*", "NOTICE*", *_MEASURED)
_AS_THEY_ARE = (*_PICTURES, "*.gguf")
# What programs read; where a model or a tokenizer was loaded from may stand in it.
_SETTINGS = ("*config.json", TRAINER_STATE_NAME)
_ASIDE = re.compile(r"_.*\.tmp-.*")


@dataclass(frozen=True)
class Source:
    """Folders that something is published of.

    Attributes:
        packed, online: of the student in these forms, `None` where there is none.
        documents: of the card, results and report; the first that has a file counts.
        name: by which a card may call the model.
    """

    packed: Path | None
    online: Path | None
    documents: tuple[Path, ...]
    name: str

    @property
    def model(self) -> Path:
        return self.packed or self.online  # type: ignore[return-value]  # one of them is there


def quantization_of(folder: Path) -> dict[str, Any]:
    """The `quantization_config` of a model's folder; empty where there is none."""
    found = read_json(folder / CONFIG_NAME).get("quantization_config")
    return found if isinstance(found, dict) else {}


def is_student_folder(folder: Path) -> bool:
    """Whether a folder holds a student of this library."""
    return (folder / CONFIG_NAME).is_file() and quantization_of(folder).get("quant_method") == QUANT_METHOD


def find_source(folder: str | Path) -> Source:
    """Of a packed student's folder, a trainable one's (or of the training that made it), or a run of the recipe.

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: it holds a model that is no student.
        CheckpointError: its config.json is damaged.
    """
    folder = Path(folder).expanduser()
    run = folder / PACKED
    if not (folder / CONFIG_NAME).is_file() and (run / CONFIG_NAME).is_file():
        return Source(run, _student_of_run(folder), (run, folder), run.name)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    find_model(str(folder.resolve()))
    quantization = quantization_of(folder)
    if not is_student_folder(folder):
        raise ValueError(
            f"{folder} holds no ternary student (quant_method {quantization.get('quant_method')!r}): nothing was uploaded. A model of "
            "another kind is pushed by its own library."
        )
    online = quantization.get("quantization_mode") == "online"
    return Source(None if online else folder, folder if online else None, (folder,), folder.resolve().name)


def _student_of_run(folder: Path) -> Path | None:
    """The trainable student of a run of the recipe, also of one that was moved."""
    if not (folder / RESULT_FILE).is_file():
        return None
    paths = read_json(folder / RESULT_FILE).get("paths")
    if not isinstance(paths, dict) or not isinstance(paths.get("student"), str):
        return None
    named = Path(paths["student"])
    below = folder.joinpath(*named.parts[named.parts.index(STAGES) :]) if STAGES in named.parts else named
    return next((place for place in (below, named) if (place / CONFIG_NAME).is_file()), None)


def packed_place(source: Source, scratch: Path) -> Path:
    """The folder of the packed student: the source's own, or the one in `scratch` that it is packed into."""
    return source.packed or scratch / PACKED


def pack_folder(folder: Path, output: Path, max_shard_size: int | str = "50GB") -> None:
    """Pack the trainable student of a folder into another one.

    Raises:
        CheckpointError, PackedWeightError: a file or a weight is not usable.
    """
    kind = auto_class(head_of(AutoConfig.from_pretrained(folder)))
    packed = pack(kind.from_pretrained(folder, dtype="auto"), inplace=True)
    tokenizer = AutoTokenizer.from_pretrained(folder) if tokenizer_files(folder) else None
    save_packed(packed, output, tokenizer, max_shard_size=max_shard_size)


def save_forms(
    model: PreTrainedModel, push_format: str, scratch: Path, max_shard_size: int | str
) -> tuple[Path | None, Path | None]:
    """Write a model in memory in the forms that are asked for; returns the folders of the packed and of the online one.

    Raises:
        SurgeryError, ValueError: it has no such form.
    """
    online = getattr(model.config.quantization_config, "quantization_mode", None) == "online"
    packed_folder = online_folder = None
    if push_format != "online":
        packed_folder = scratch / "packed"
        packed = pack(model) if online else model
        save_packed(packed, packed_folder, max_shard_size=max_shard_size)
    if push_format != "packed":
        if not online:
            raise no_latent_weights(type(model).__name__)
        online_folder = scratch / ONLINE_FOLDER
        model.save_pretrained(online_folder, max_shard_size=max_shard_size)
    return packed_folder, online_folder


def no_latent_weights(what: str) -> ValueError:
    return ValueError(f"{what} is packed, and its trainable weights are not there: push_format must be 'packed'")


def model_files(folder: Path) -> Files:
    """Weights, configurations, tokenizer and reference answers of a model's folder; what else lies there, older weights among it, is not published.

    Raises:
        CheckpointError: a configuration is damaged.
        FileNotFoundError: it has no safetensors.
    """
    config = read_json(folder / CONFIG_NAME)
    explicit = config.pop(EXPLICIT_NAME, None)
    weights = local_weight_files(folder, explicit)
    if not weights:
        raise FileNotFoundError(f"{folder} has no weights as safetensors")
    files: Files = {CONFIG_NAME: folder / CONFIG_NAME}
    if explicit:
        # Of a save that was killed when its model was complete: names as if it had not been.
        files[CONFIG_NAME] = _json(config)
    if str(explicit).endswith(".safetensors") or weights[0].name == SAFE_WEIGHTS_NAME:
        files[SAFE_WEIGHTS_NAME] = weights[0]
    else:
        index = read_json(folder / (explicit or SAFE_WEIGHTS_INDEX_NAME))
        index["weight_map"] = {key: Path(name).name for key, name in index["weight_map"].items()}
        files[SAFE_WEIGHTS_INDEX_NAME] = _json(index)
        files.update({file.name: file for file in weights})
    for name in (GENERATION_CONFIG_NAME, REFERENCE_FILE):
        if (folder / name).is_file():
            files[name] = folder / name
    if config.get("auto_map"):  # the model's own code
        files.update(_matching(folder, ("*.py",)))
    return {**without_local_paths(files, folder), **tokenizer_files(folder)}


def other_files(folder: Path, secrets: set[str]) -> Files:
    """Of a model that is no student of this library (in full precision, or an adapter): weights, configurations, tokenizer."""
    files: Files = dict(
        _matching(
            folder,
            ("*.safetensors", SAFE_WEIGHTS_INDEX_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME),
        )
    )
    return {**without_local_paths(files, folder, secrets), **tokenizer_files(folder)}


def without_local_paths(files: Files, folder: Path, secrets: Set[str] = frozenset()) -> Files:
    """Files of which those that hold settings tell nothing of this machine: local paths in them are their last names.

    Args:
        folder: that they lie in.
        secrets: taken out of them, as is whatever looks like one.

    Raises:
        CheckpointError: one of them is no JSON object; names it.
    """
    changed: Files = {}
    for name, content in files.items():
        if any(fnmatch.fnmatch(PurePosixPath(name).name, pattern) for pattern in _SETTINGS):
            values = json.loads(content) if isinstance(content, bytes) else read_json(content)
            scrubbed = scrub_values(values, set(secrets), (folder,))
            if scrubbed != values:
                changed[name] = _json(scrubbed)
    return {**files, **changed}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def tokenizer_files(folder: Path) -> Files:
    """A folder's tokenizer, with its chat templates."""
    return without_local_paths(dict(_matching(folder, (*_TOKENIZER, *_PROCESSOR))), folder)


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and not _ASIDE.fullmatch(file.name):
                yield file.relative_to(folder).as_posix(), file


def documents(source: Source, repo_id: str, secrets: set[str]) -> Files:
    """Card, licence, results, report with its curves: text without local paths and secrets, and with the repository's name."""
    files: Files = {}
    for folder in source.documents:
        for name, file in _matching(folder, _DOCUMENTS):
            if name not in files:
                text = scrub(_read(file), secrets, (*source.documents, source.model))
                files[name] = (_call_by(text, repo_id, source) if name == CARD else text).encode()
        for name, file in _matching(folder, _AS_THEY_ARE):
            files.setdefault(name, file)
        if (folder / TRAINER_STATE_NAME).is_file() and TRAINING_LOG not in files:
            state = read_json(folder / TRAINER_STATE_NAME)
            files[TRAINING_LOG] = _json({key: state.get(key) for key in ("global_step", "epoch", "log_history")})
    return files


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}): nothing was uploaded") from None


def _call_by(card: str, repo_id: str, source: Source) -> str:
    """A card that loads the model from where it is published."""
    names = {re.escape(name) for name in (source.name, source.model.name, source.model.resolve().name)}
    name = f"(?:{'|'.join(sorted(names))})"
    card = re.sub(rf'(from_pretrained\(\s*["\']){name}(["\'])', rf"\g<1>{repo_id}\g<2>", card)
    return re.sub(rf"(`bitdistill (?:evaluate|verify) ){name}([` ])", rf"\g<1>{repo_id}\g<2>", card)


def check_files(files: Files, secrets: set[str]) -> None:
    """The last look at an upload.

    Raises:
        ValueError: a file holds a secret; names it.
    """
    for name, content in files.items():
        check_no_secret(name, content, secrets)


def link_files(files: Files, scratch: Path) -> Files:
    """The same files under names of their own (hard links, or copies where there are none), which stay when others are removed."""
    linked: Files = {}
    own = Path(tempfile.mkdtemp(dir=scratch))
    for number, (name, content) in enumerate(files.items()):
        if isinstance(content, Path) and not content.is_relative_to(scratch):
            place = own / f"{number}-{content.name}"
            try:
                place.hardlink_to(content.resolve())
            except OSError:
                shutil.copyfile(content, place)
            content = place
        linked[name] = content
    return linked


def is_tokenizer_file(path: str) -> bool:
    """Whether a path belongs to the tokenizer of the model's folder that it is in (and not to what reads images)."""
    return _is_one_of(path, _TOKENIZER)


def is_measurement(path: str) -> bool:
    """Whether a path holds what was measured of the student in whose folder it is: scores, a report, the log of the training, answers."""
    return _is_one_of(path, (*_MEASURED, *_PICTURES, TRAINING_LOG, *RECORDS))


def _is_one_of(path: str, patterns: tuple[str, ...]) -> bool:
    parts = path.split("/")
    return any(
        len(names) == len(parts) and all(map(fnmatch.fnmatchcase, parts, names))
        for names in (pattern.split("/") for pattern in patterns)
    )
