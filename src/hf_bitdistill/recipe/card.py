"""What a student's folder says of it: a card for people, and a record by which it can be measured again."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..data.fingerprint import fingerprint_rows
from ..evaluation.record import Record
from ..hub.card import TAGS, TERNARY_TAGS, base_model_id
from ..report.tables import markdown_table
from ..sizes import bytes_by_kind
from .examples import Examples
from .result import PACKED_ROW, RecipeResult


def write_card(folder: Path, name: str, result: RecipeResult, base: str, examples: Examples) -> None:
    """`README.md` of a folder that will be called `name`, and the record of the packed student in it and beside the trainable one that it was
    packed from."""
    for place in (folder, result.paths["student"]):
        _record(result, examples).write(place)
    header, rows = result.cells()
    data = ModelCardData(
        library_name="transformers",
        base_model=base_model_id(base),
        tags=[*TAGS, *TERNARY_TAGS],
        pipeline_tag="text-generation",
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {result.output.resolve().name}",
        "A ternary (1.58-bit) student, made by `bitdistill run`.",
        f"Data: {result.data}.",
        f"`bitdistill evaluate {folder.name}` measures it again.",
    ]
    if examples.task is not None:
        parts.append(f"It is asked with this prompt, and answers after it:\n\n```text\n{examples.task.prompt}\n```")
        if examples.task.label_words:
            parts.append(f"Answers: {', '.join(examples.task.label_words)}.")
    parts += [
        "## Scores",
        markdown_table(header, rows),
        *result.sentences(),
        "## Size",
        bytes_by_kind(folder).markdown(),
        "## Use",
        "```python\nimport hf_bitdistill  # registers the quantizer\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n```',
    ]
    ModelCard("\n\n".join(parts)).save(folder / "README.md")


def _record(result: RecipeResult, examples: Examples) -> Record:
    row = next(row for row in result.table if row.name == PACKED_ROW)
    score = row.score
    scores = {
        "task": examples.task.name if examples.task is not None else examples.how.kind,
        score["metric"]: score["value"],
        f"{score['metric']}_stderr": score["stderr"],
        "n": score["n"],
        "chance_level": score["chance"],
        **score["more"],
    }
    return Record(scores, examples.how, fingerprint_rows(examples.evaluation), "bitdistill run", row.name)
