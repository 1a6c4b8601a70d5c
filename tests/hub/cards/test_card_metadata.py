"""What the client can tell of a card's metadata without the Hub: fields, and the scores of the model index, come back as they were written."""

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement, Record
from hf_bitdistill.hub.cards import CardFacts, add_tags, write_card


SCORES = {"task": "sst2", "accuracy": 0.87654, "accuracy_stderr": float("nan"), "n": 872}
HUB = Measurement(task=get_task("sst2"), dataset="nyu-mll/glue", dataset_config="sst2", split="validation")
LOCAL = Measurement(task=get_task("sst2"), data_dir="data", split="validation")
FIELDS = {"license": "mit", "language": ["en", "de"], "datasets": ["nyu-mll/glue"]}


@pytest.mark.parametrize("push_format", ["packed", "online", "both"])
@pytest.mark.parametrize("how", [None, HUB, LOCAL], ids=["unmeasured", "hub", "local"])
def test_metadata_comes_back_as_it_was_written(config, how, push_format, tmp_path):
    record = None if how is None else Record(SCORES, how, "rows", "a command", "a model")
    title = 'a "title": with, #signs'
    facts = CardFacts(title, "me/student", config, base="org/model", record=record, push_format=push_format)
    facts.metadata, facts.date = FIELDS, "2026-11-27"
    text = add_tags(write_card(tmp_path, facts).read_text(encoding="utf-8"), ["mine"])
    card = ModelCard(text, ignore_metadata_errors=False)
    assert {name: card.data.get(name) for name in FIELDS} == FIELDS
    assert (card.data.base_model, card.data.pipeline_tag) == ("org/model", "text-generation")
    assert card.data.tags == ["bitdistill", "bitnet", "ternary", "mine"]
    written = yaml.safe_load(text.split("---")[1])
    # Fields of the Hub's specification alone, none of them empty, and what is read is written again.
    assert set(written) <= {*vars(ModelCardData()), "base_model_relation", "model-index"} and all(written.values())
    assert ModelCardData(**written).to_dict() == written == card.data.to_dict()
    if how is None:
        assert "model-index" not in written
        return
    name, results = model_index_to_eval_results(written["model-index"])
    assert name == title and eval_results_to_model_index(name, results) == written["model-index"]
    (result,) = results
    assert (result.task_type, result.metric_type, result.metric_value) == ("text-generation", "accuracy", 0.8765)
    assert result.metric_args == {"n": 872}, "one row tells no error, and no number stands for none"
    entries = tmp_path / ".eval_results" / "bitdistill.yaml"
    assert entries.is_file() == (how is HUB)
    if how is HUB:
        (entry,) = parse_eval_result_entries(yaml.safe_load(entries.read_text(encoding="utf-8")))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/glue", "sst2", 0.8765)
