"""`bitdistill data` from the command line, on data and a tokenizer made here."""

import html.parser
import json
import re

import pytest
import yaml

from hf_bitdistill.cli.main import main
from hf_bitdistill.data import load_task
from hf_bitdistill.data.recognition import recognize
from hf_bitdistill.data.sources import load_examples
from hf_bitdistill.data.view import as_text, facts, look_at


CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture
def model(tmp_path, tiny_llama_config, tiny_tokenizer):
    folder = tmp_path / "model"
    tiny_llama_config.save_pretrained(folder)
    tiny_tokenizer.chat_template = CHAT
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def show(capsys, *argv):
    status = main(["data", *map(str, argv)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def reviews(tmp_path):
    rows = [{"text": f"film number {i} is {'dull' if i % 3 else 'warm'} .", "label": i % 3} for i in range(60)]
    rows[7]["text"] = None
    rows[8]["label"] = None
    rows[9]["text"] = "slow " * 120
    rows[11] = dict(rows[10])
    return write(tmp_path / "reviews.jsonl", rows)


def test_a_file_of_one_s_own(reviews, model, tmp_path, capsys):
    page = tmp_path / "page.html"
    status, out, _ = show(
        capsys, reviews, "--model", model, "--label_words", "bad", "fair", "good", "--output", page, "--max_length", 64
    )
    assert status == 0
    assert "prompt       Text: {text}\n" in out and "Label (bad, fair or good):" in out
    assert "0 -> bad, 1 -> fair, 2 -> good" in out and "metric       accuracy" in out
    assert "held out of the training rows" in out
    # 60 rows of which 6 are held out; two cannot be used wherever they are.
    table = dict(re.findall(r"^(train|validation) +(\d+ +all +\d+ +\d)", out, re.M))
    assert table["train"].split()[0] == "54" and table["validation"].split()[0] == "6"
    used = sum(int(row.split()[2]) for row in table.values())
    assert used == 58 and sum(int(row.split()[3]) for row in table.values()) == 1
    assert out.count("1 empty text") == 1 and out.count("1 without label") == 1
    assert re.search(r"\[\[ (bad|fair|good)</s>\]\]", out) and "3 trained on" not in out.split("== Lengths")[1]
    assert "<- max_length" in out and "64 (now)" in out
    _check_page(page.read_text())


def _first_example(out):
    return out.split("== Example 1")[1].split("==")[0].partition("\n")[2]


def _check_page(text):
    class Checker(html.parser.HTMLParser):
        open_tags, images = [], 0

        def handle_starttag(self, tag, attrs):
            if tag == "img":
                self.images += 1
                assert dict(attrs)["src"].startswith("data:image/png;base64,")
            elif tag != "meta":
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    checker = Checker()
    checker.feed(text)
    assert not checker.open_tags and checker.images == 2
    assert "Content-Security-Policy" in text and not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", text)
    assert '<span class="trained">' in text and '<span class="trained special">&lt;/s&gt;</span>' in text


def test_a_task_file_made_of_what_was_recognised_says_the_same(reviews, model, tmp_path, capsys):
    file = tmp_path / "task.yaml"
    task = recognize(load_examples(reviews).train, reviews).task
    file.write_text(facts.task_file(task))
    again = load_task(file)
    for name in ("prompt", "target_field", "label_words", "label_values", "metric", "max_length", "document_field"):
        assert getattr(again, name) == getattr(task, name)
    values = yaml.safe_load(file.read_text())
    values["prompt"] = "Is this good?\n{text}\nVerdict:"
    file.write_text(yaml.safe_dump(values))
    status, out, _ = show(capsys, reviews, "--model", model, "--task", file, "--samples", 1)
    assert status == 0 and "Is this good?\nfilm number" in out and "Example 2" not in out
    status, _, err = show(capsys, reviews, "--model", model, "--task", file, "--label_column", "label")
    assert status == 1 and "leave out --label_column" in err


def test_a_built_in_task_s_prompt_is_shown(tmp_path, model, capsys):
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [{"sentence": f"a {'fine' if i % 2 else 'dull'} film {i}", "label": i % 2} for i in range(20)]
    for split in ("train", "validation"):
        write(folder / f"{split}.jsonl", rows)
    status, out, _ = show(capsys, folder, "--model", model)
    assert status == 0 and "prompt       Review: {sentence}\n" in out and "Sentiment (negative or positive):" in out
    assert "128 tokens of an example, the task's" in out and "Review: a " in _first_example(out)
    assert "Sentence: a " in show(capsys, folder, "--model", model, "--label_column", "label")[1]


def test_too_much_left_out_is_said_and_ends_with_1(tmp_path, model, capsys):
    rows = [{"text": "a film ." if i % 4 else "", "label": "ab"[i % 2]} for i in range(40)]
    file = write(tmp_path / "rows.jsonl", rows)
    status, out, err = show(capsys, file, "--model", model)
    assert status == 1 and "== Labels" in out
    assert "rows.jsonl: 10 of 40 rows (25.0%) cannot be used" in err and "10 empty text" in err
    assert len(err.strip().splitlines()) == 1
    assert show(capsys, file, "--model", model, "--max_left_out", "0.9")[0] == 0


def test_conversations(tmp_path, model, capsys):
    def talk(i, words=3):
        turns = [("user", f"number {i} ?"), ("assistant", "one"), ("user", "more"), ("assistant", "two " * words)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    rows = [talk(i) for i in range(39)] + [talk(40, 90), {"messages": [{"role": "user", "content": "alone"}]}]
    file = write(tmp_path / "talks.jsonl", rows)
    status, out, _ = show(capsys, file, "--model", model, "--max_length", 100, "--max_left_out", 0.5)
    assert status == 0 and "kind         conversations" in out
    assert "1 longer than max_length" in out and "1 no assistant turn" in out
    example = _first_example(out)
    assert example.count("[[") == example.count("]]") == 2 and "[[one</s>]]" in example
    example = _first_example(show(capsys, file, "--model", model, "--turns", "last")[1])
    assert example.count("[[") == 1 and "[[two two two" in example


def test_prompts_with_completions_and_their_duplicates(tmp_path, model, capsys):
    folder = tmp_path / "pairs"
    folder.mkdir()
    write(folder / "train.jsonl", [{"prompt": f"Q{i % 9}?", "completion": f" A{i % 9}"} for i in range(10)])
    rows = [{"prompt": p, "completion": c} for p, c in (("Q1?", " A1"), ("Q2?", " other"), ("Q99?", " A"))]
    write(folder / "validation.jsonl", rows)
    status, out, _ = show(capsys, folder, "--model", model)
    assert status == 0 and "[[ A" in out
    assert "2 of 3 validation rows (66.7%) are among the training rows too, 1 of them with the same answer" in out
    assert "1 training rows repeat an earlier one" in out


def test_plain_text(tmp_path, model, capsys):
    file = tmp_path / "corpus.txt"
    file.write_text("The robot waters the plant.\n\n" * 30 + "It ends here.\n")
    status, out, _ = show(capsys, file, "--model", model, "--max_length", 32)
    assert status == 0 and "kind         plain text" in out and "tokens of a block" in out
    assert "Example 1: 32 tokens, 32 trained on" in out and "--max_length would cut" not in out


def _view(file, model, **options):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return look_at(load_examples(file), tokenizer, model, **options)


def test_colour_and_what_a_terminal_would_obey(tmp_path, model):
    rows = [{"prompt": f"\x1b[2J{i}", "completion": "fine"} for i in range(10)]
    view = _view(write(tmp_path / "rows.jsonl", rows), model, samples=1)
    plain, colour = as_text(view), as_text(view, color=True)
    assert "\x1b" not in plain and "\\x1b[2J" in plain and "[[fine</s>]]" in plain
    assert "\x1b[1;32mfine\x1b[0m" in colour and "\x1b[2J" not in colour and "[[fine" not in colour


def test_a_part_of_many_rows_is_said_to_be_a_part(reviews, model):
    view = _view(reviews, model, max_rows=20)
    assert [(split.rows, split.looked_at) for split in view.splits] == [(54, 20), (6, 6)]
    assert "54    20         " in as_text(view)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_length", "300"], "max_length is 300, and the model reads at most 256 tokens"),
        (["--max_left_out", "2"], "--max_left_out is a share"),
        (["--samples", "-1"], "--samples must not be negative"),
        (["--text_columns", "no"], "has no column 'no'; it has text, label"),
        (["--task", "none.yaml"], "there is no task file none.yaml"),
        (["--turns", "last"], "turns 'last' is read of conversations alone"),
        (["--config_name", "x"], "the configuration 'x' could only be of a dataset on the Hub"),
    ],
)
def test_bad_options_are_one_line(reviews, model, capsys, options, message):
    status, _, err = show(capsys, reviews, "--model", model, *options)
    assert status == 1 and message in err and len(err.strip().splitlines()) == 1


def test_the_default_length_is_at_most_the_context(tmp_path, model):
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"Q{i}", "completion": "A"} for i in range(10)])
    view = _view(file, model, context=256)
    assert (view.max_length, view.max_length_from) == (256, "the model's context")
    assert _view(file, model).max_length == 1024
