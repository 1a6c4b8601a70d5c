"""One template for every card: what is known stands in it, what is not known does not."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement, Record
from hf_bitdistill.hub.cards import CardFacts, build_card, last_evaluation, set_aside, write_card
from students import make_student


SCORES = {"task": "sst2", "accuracy": 0.87654, "accuracy_stderr": 0.0123, "n": 872}


@pytest.mark.parametrize("push_format", ["packed", "online", "both"])
def test_the_card_of_a_student_of_which_nothing_else_is_known(config, push_format):
    facts = CardFacts("student", "me/student", config, base="org/model", push_format=push_format, tags=["mine"])
    card = build_card(facts)
    assert (card.data.base_model, card.data.base_model_relation) == ("org/model", "quantized")
    assert card.data.tags == ["bitdistill", "bitnet", "ternary", "mine"]
    assert card.data.pipeline_tag == "text-generation" and card.data.library_name == "transformers"
    assert ('from_pretrained("me/student")' in card.content) == (push_format != "online")
    assert ('from_pretrained("me/student", subfolder="online")' in card.content) == (push_format != "packed")
    for absent in ("## Results", "## Size", "## Speed", "## How", "## Limits", "## Citation", "None", "{{", "\n\n\n"):
        assert absent not in card.content, absent


def test_a_model_in_full_precision_is_called_no_student(config):
    plain = make_student().config
    del plain.quantization_config
    card = build_card(CardFacts("model", "me/model", plain, classifier=True, base="org/model"))
    assert "ternary" not in card.content and "import hf_bitdistill" not in card.content
    assert card.data.base_model_relation == "finetune" and card.data.pipeline_tag == "text-classification"


def test_a_measured_student(config, tmp_path):
    how = Measurement(task=get_task("sst2"), dataset="stanfordnlp/sst2", split="validation", dataset_revision="abc")
    record = Record(SCORES, how, "rows", "a command", "a model")
    facts = CardFacts("student", "me/student", config, record=record, date="2026-11-27", kept=["lm_head"])
    facts.gguf, facts.metadata = ["student.gguf"], {"license": "mit", "language": None}
    card = ModelCard.load(write_card(tmp_path, facts))
    text = card.content
    assert "| accuracy | 87.7 ± 1.2 % | sst2 | validation | 872 |" in text
    assert get_task("sst2").prompt in text and "`bitdistill evaluate me/student`" in text
    assert "llama-cli -m student.gguf" in text and "In full precision stayed: lm_head." in text
    assert card.data.license == "mit" and card.data.language is None and card.data.metrics == ["accuracy"]
    (score,) = card.data.eval_results
    assert (score.dataset_type, score.metric_value, score.dataset_split) == ("stanfordnlp/sst2", 0.8765, "validation")
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "bitdistill.yaml").read_text()))
    assert (entry.dataset_id, entry.value, entry.dataset_revision) == ("stanfordnlp/sst2", 0.8765, "abc")
    # Of a student without such scores they do not stay.
    write_card(tmp_path, CardFacts("student", "me/student", config))
    assert not (tmp_path / ".eval_results" / "bitdistill.yaml").exists()


def test_scores_of_local_data_name_no_repository(config, tmp_path):
    how = Measurement(task=get_task("sst2"), data_dir=str(tmp_path), split="validation")
    write_card(tmp_path, CardFacts("student", "student", config, record=Record(SCORES, how)))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets is None and card.data.eval_results[0].dataset_type == "sst2"
    assert str(tmp_path) not in card.content and not (tmp_path / ".eval_results").exists()
    assert "`bitdistill evaluate student --data_dir DATA` measures the scores again" in card.content
    assert f"(`{tmp_path.name}`, split validation)" in card.content


def test_what_is_unknown_is_not_said_to_be_missing_from_the_hub(config):
    for base, words in (("/data/Base", "`Base`, a local folder"), (Path("org/base"), "`base`, a local folder")):
        card = build_card(CardFacts("student", "student", config, base=base, teacher=""))
        assert words in card.content and "on the Hub" not in card.content and card.data.base_model is None


def test_texts_that_are_set_aside_do_not_take_each_others_place(tmp_path):
    for text in ("one", "two", "three"):
        (tmp_path / "README.md").write_text(text)
        assert set_aside(tmp_path / "README.md").read_text() == text
    names = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert names == {"README.previous.md": "one", "README.previous-2.md": "two", "README.previous-3.md": "three"}


@pytest.mark.parametrize(
    "theirs", ["# Mine\n", "---\ntags: [distillation]\n---\nmine\n", "---\n: {\n---\n", b"\xff\xfe"]
)
def test_what_somebody_else_wrote_is_kept(config, tmp_path, theirs):
    theirs = theirs if isinstance(theirs, bytes) else theirs.encode()
    (tmp_path / "README.md").write_bytes(theirs)
    for _ in range(2):  # the second time it is ours
        write_card(tmp_path, CardFacts("student", "me/student", config))
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", "README.previous.md"}
    assert (tmp_path / "README.previous.md").read_bytes() == theirs
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"


def test_what_a_trainer_measured_last():
    log = [{"eval_loss": 2.0, "step": 1}, {"eval_loss": 1.5, "eval_runtime": 3.0, "step": 2}, {"loss": 1.0, "step": 3}]
    assert last_evaluation([]) is None and last_evaluation(log[2:]) is None
    table = last_evaluation(log)
    assert "after step 2" in table and "| eval_loss | 1.5000 |" in table and "runtime" not in table


def test_what_a_trainer_measured_of_the_weights_that_it_took():
    """The best ones, at the end of the training; what came before it was measured of others."""
    log = [{"eval_loss": 1.0, "step": 1}, {"eval_loss": 3.0, "step": 2}]
    assert "after step 2" in last_evaluation(log, 1)  # while it trains
    log.append({"train_runtime": 5.0, "step": 2})
    assert "after step 2" in last_evaluation(log) and "after step 1" in last_evaluation(log, 1)
    log.append({"eval_loss": 1.25, "step": 2})  # of the best weights, once more
    assert "| eval_loss | 1.2500 |" in last_evaluation(log, 1)
