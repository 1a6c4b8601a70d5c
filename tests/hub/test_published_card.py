"""The card of an upload is of what is published: of another student, in other forms, of a packed folder without one."""

import json
import logging
import shutil

import pytest
from hub_double import Fault
from huggingface_hub import ModelCard

from hf_bitdistill import pack, push_to_hub
from hf_bitdistill.cli.main import main
from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement, Record
from hf_bitdistill.hub.cards import CardFacts, write_card


SCORES = {"task": "sst2", "accuracy": 0.9, "accuracy_stderr": 0.01, "n": 24}
HOW = Measurement(task=get_task("sst2"), dataset="stanfordnlp/sst2", split="validation")
# What a run leaves in a repository besides its weights.
MEASURED = (
    "evaluation.json", "verification.json", "warm_start.json", "result.json", "all_results.json", "report.html", "report/quality.png",
    "training_log.json", ".eval_results/bitdistill.yaml",
)  # fmt: skip
NOT_MEASURED = ("LICENSE", "notes.md", "report.md", "old/evaluation.json", "student.gguf")


@pytest.fixture
def packed(student, tiny_tokenizer, tmp_path):
    """A folder of a packed student with scores, and without a card."""
    folder = tmp_path / "packed"
    pack(student).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    Record(SCORES, HOW, "rows", "bitdistill evaluate").write(folder)
    return folder


def card_of(hub, repo_id="owner/student", revision="main"):
    return ModelCard(hub.files(repo_id, revision)["README.md"].decode())


def fill(hub, card, folder=""):
    """A repository as a run left it."""
    hub.create("owner/student")
    names = (*MEASURED, *NOT_MEASURED, f"{folder}model.safetensors")
    hub.put("owner/student", {**dict.fromkeys(names, b"{}"), "README.md": card.encode()})


def test_another_student_takes_the_place_of_a_measured_one(hub, student, tmp_path):
    facts = CardFacts("student", "owner/student", student.config, record=Record(SCORES, HOW), tags=["mine"])
    facts.metadata = {"license": "mit", "language": "de"}
    before = write_card(tmp_path, facts).read_text()
    assert "90.0 ± 1.0 %" in before and "stanfordnlp/sst2" in before
    fill(hub, before)
    student.push_to_hub("owner/student")
    files = hub.files("owner/student")
    # (What it answered when it was packed the upload brings itself.)
    assert set(files) & set(MEASURED) == {"verification.json"} and set(files) >= set(NOT_MEASURED)
    assert len(hub.history("owner/student")) == 3  # the first one, what the run left, the student
    card = card_of(hub)
    assert (card.data.license, card.data.language) == ("mit", "de") and "mine" in card.data.tags
    assert card.data.datasets is None and card.data.eval_results is None and "90.0" not in card.content
    assert "| ternary codes |" in card.content and 'from_pretrained("owner/student")' in card.content


def test_a_card_that_a_person_wrote_stays(hub, student):
    fill(hub, "---\nlicense: mit\ntags: [mine]\n---\n# My words\n")
    student.push_to_hub("owner/student")
    assert hub.files("owner/student")["README.md"] == b"---\nlicense: mit\ntags: [mine]\n---\n# My words\n"
    assert "result.json" not in hub.files("owner/student")


def test_a_licence_of_another_base_model_does_not_stay(hub, student, tmp_path):
    old = CardFacts("student", "owner/student", student.config, base="org/apache", metadata={"license": "apache-2.0"})
    fill(hub, write_card(tmp_path, old).read_text())
    hub.create("org/mit-base")
    hub.put("org/mit-base", {"README.md": b"---\nlicense: mit\n---\n"})
    student.name_or_path = student.config.name_or_path = "org/mit-base"
    student.push_to_hub("owner/student")
    assert (card_of(hub).data.base_model, card_of(hub).data.license) == ("org/mit-base", "mit")


def test_a_repository_with_the_trainable_form_alone(hub, student):
    """Its documents lie in the root all the same."""
    fill(hub, "---\ntags: [bitdistill]\n---\n90 %\n", "online/")
    student.push_to_hub("owner/student", push_format="online")
    files = hub.files("owner/student")
    assert not set(files) & set(MEASURED) and set(files) >= set(NOT_MEASURED)
    assert "90 %" not in card_of(hub).content and 'subfolder="online"' in card_of(hub).content


def test_the_trainable_form_is_added_to_a_measured_student(hub, student, packed, tmp_path):
    push_to_hub(packed, "owner/student")
    assert "90.0 ± 1.0 %" in card_of(hub).content and "optimum.bitnet" in card_of(hub).content
    student.push_to_hub("owner/student", push_format="online")
    card = card_of(hub).content
    assert "evaluation.json" in hub.files("owner/student")
    assert "90.0 ± 1.0 %" in card and "optimum.bitnet" in card and 'subfolder="online"' in card
    assert "`bitdistill evaluate owner/student` measures the scores again" in card


def test_the_card_of_a_run_tells_of_the_forms_that_are_published(hub, student, tmp_path):
    run = tmp_path / "out"
    pack(student).save_pretrained(run / "packed")
    student.save_pretrained(run / "stages" / "distill" / "model")
    paths = {"student": str(run / "stages" / "distill" / "model"), "packed": str(run / "packed")}
    (run / "result.json").write_text(json.dumps({"paths": paths}))
    text = write_card(run / "packed", CardFacts("out", "packed", student.config)).read_text() + "\n## Mine\n\nwords\n"
    (run / "packed" / "README.md").write_text(text)
    for push_format, is_packed, is_online in (("packed", 1, 0), ("online", 0, 1), ("both", 1, 1)):
        repo_id = f"owner/{push_format}"
        push_to_hub(run, repo_id, push_format=push_format)
        card = card_of(hub, repo_id).content
        assert (f'from_pretrained("{repo_id}")' in card) == ("optimum.bitnet" in card) == is_packed
        assert (f'from_pretrained("{repo_id}", subfolder="online")' in card) == is_online
        assert card.count("## Loading") == 1 and "## Mine\n\nwords" in card
    # The student's own folder holds the packed form, whatever is published.
    assert (run / "packed" / "README.md").read_text() == text


def test_a_packed_folder_without_a_card(hub, packed):
    push_to_hub(packed, "owner/student")
    card = card_of(hub)
    assert "| ternary codes |" in card.content and "90.0 ± 1.0 %" in card.content
    assert card.data.datasets == ["stanfordnlp/sst2"] and card.data.eval_results[0].dataset_split == "validation"


def test_pack_takes_the_metadata_of_a_card_over(hub, student, tiny_tokenizer, tmp_path):
    folder, packed = tmp_path / "student", tmp_path / "packed"
    student.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    Record(SCORES, HOW, "rows", "bitdistill evaluate").write(folder)
    (folder / "README.md").write_text(
        "---\nlicense: mit\nlanguage: de\nbase_model: org/base\ntags: [mine]\n---\n# Mine\n"
    )
    assert main(["pack", str(folder), str(packed)]) == 0
    for card in (ModelCard.load(packed / "README.md"), push_to_hub(packed, "owner/student") and card_of(hub)):
        assert (card.data.base_model, card.data.license, card.data.language) == ("org/base", "mit", "de")
        assert "mine" in card.data.tags and "| ternary codes |" in card.content and "90.0 ± 1.0 %" in card.content
    # A card of one's own in the place of the packed student is not replaced.
    (packed / "README.md").write_text("mine")
    assert main(["pack", str(folder), str(packed)]) == 0
    assert (packed / "README.md").read_text() == "mine"
    # Metadata that cannot be read is said, and the student is packed all the same.
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    shutil.rmtree(packed)
    assert main(["pack", str(folder), str(packed)]) == 0
    assert (packed / "model.safetensors").is_file() and not (packed / "README.md").exists()


def test_a_model_in_memory_brings_its_tokenizer(hub, student, tiny_tokenizer, tmp_path, caplog):
    hub.create("owner/student")
    old = {"tokenizer.json": b"{}", "merges.txt": b"old", "vocab.json": b"{}", "chat_template.jinja": b"old"}
    others = {"preprocessor_config.json": b"{}", "tokenizer/notes.txt": b"mine"}
    hub.put("owner/student", {**old, **others})
    student.push_to_hub("owner/student")  # of which no tokenizer is known
    assert set(hub.files("owner/student")) >= {*old, *others}
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    student.name_or_path = student.config.name_or_path = str(tmp_path / "base")
    with caplog.at_level(logging.WARNING):
        student.push_to_hub("owner/student")
    files = hub.files("owner/student")
    assert files["tokenizer.json"] == (tmp_path / "base" / "tokenizer.json").read_bytes()
    assert not {"merges.txt", "vocab.json", "chat_template.jinja"} & set(files) and set(files) >= set(others)
    assert "without a tokenizer" not in caplog.text
    student.name_or_path = student.config.name_or_path = ""
    with caplog.at_level(logging.WARNING):
        student.push_to_hub("owner/new")
    assert "owner/new is published without a tokenizer" in caplog.text


def test_a_given_tokenizer_takes_the_place_of_the_folders(hub, student, packed, tiny_tokenizer):
    (packed / "merges.txt").write_text("old")
    tiny_tokenizer.chat_template = "given"
    push_to_hub(packed, "owner/student", tokenizer=tiny_tokenizer)
    files = hub.files("owner/student")
    assert "merges.txt" not in files and b"given" in files["chat_template.jinja"]


def test_a_card_that_cannot_be_fetched_leaves_the_repository_as_it_was(hub, student):
    fill(hub, "---\ntags: [bitdistill]\n---\n")
    before = hub.repositories["owner/student"].branches["main"]
    hub.faults.append(Fault("GET|HEAD", "README.md", status=403, times=100))
    with pytest.raises(OSError, match="owner/student"):
        student.push_to_hub("owner/student")
    assert hub.repositories["owner/student"].branches["main"] == before
