"""What is taken out of texts before they are published, and what is left in them."""

import os
from pathlib import Path

import pytest

from hf_bitdistill.hub.scrubbing import check_no_secret, known_secrets, scrub, scrub_values


SECRET = "s3cret-0123456789"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: /tmp/data/rows.csv, /usr/lib/x", "data: rows.csv, x"),
        ('{"a": "/tmp/out dir/x y"}', '{"a": "out dir/x y"}'),
        (
            "https://huggingface.co/tmp/model and s3://tmp/usr/lib",
            "https://huggingface.co/tmp/model and s3://tmp/usr/lib",
        ),
        ("tokens/s, and/or/both, 1/2, ./tmp/x/y, a/tmp/x/y", "tokens/s, and/or/both, 1/2, ./tmp/x/y, a/tmp/x/y"),
        ("<b>x</b></td></tr> base64,/9j/4AAQSkZJRg/tmp/abc==", "<b>x</b></td></tr> base64,/9j/4AAQSkZJRg/tmp/abc=="),
        ("no-such-root: /nosuchfolder/of/this/machine", "no-such-root: /nosuchfolder/of/this/machine"),
        (
            f"key {SECRET}; hf_abcdefghijklmnopqrst; https://me:pass@host/x",
            "key <SECRET>; <SECRET>; https://<SECRET>@host/x",
        ),
    ],
)
def test_texts(text, expected):
    assert scrub(text, {SECRET}) == expected


def test_the_folders_of_a_run(tmp_path, monkeypatch):
    run = tmp_path / "Jane Doe" / "run"
    text = f"<p>{run}/out/report.html, {run}; {run}-2/x; {Path.home()}/notes.txt</p>"
    assert scrub(text, set(), [run]).startswith("<p>report.html, run; ") and scrub(text, set(), [run]).endswith(
        "; notes.txt</p>"
    )
    monkeypatch.chdir(tmp_path)
    assert scrub(f"in {tmp_path}/a", set()) == "in a"
    assert scrub(f"at {run}.", set(), [os.path.relpath(run)]) == "at run."


def test_a_secret_at_the_border_of_two_pieces(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    file = tmp_path / "file"
    file.write_bytes(b"x" * ((1 << 22) - 5) + SECRET.encode() + b"y" * 10)
    with pytest.raises(ValueError, match="weights holds the token") as error:
        check_no_secret("weights", file, known_secrets("hf_another_token"))
    assert SECRET not in str(error.value)
    file.write_bytes(b"x" * (1 << 22) + SECRET[:-1].encode())
    check_no_secret("weights", file, known_secrets())


def test_any_token_of_the_hub_is_refused(tmp_path):
    """Not only that of this process: whoever made a chat template may have left another."""
    token = b"hf_" + b"aB3" * 12
    for content in (b"{# " + token + b" #}", b"x" * ((1 << 22) - 20) + b"\n" + token + b"\n" + b"y" * 10):
        (tmp_path / "file").write_bytes(content)
        for given in (content, tmp_path / "file"):
            with pytest.raises(ValueError, match="template holds what looks like a token of the Hub") as error:
                check_no_secret("template", given, set())
            assert token.decode() not in str(error.value)
    for harmless in (
        b"hf_hub_download(repo_id)",
        b"from hf_bitdistill import pack",
        b"api_org_1",
        b"xhf_" + b"a" * 40,
    ):
        check_no_secret("template", harmless, set())


def test_values_of_settings(tmp_path):
    values = {
        "_name_or_path": f"{tmp_path}/models/base",
        "tokenizer_file": str(Path.home() / ".cache" / "tokenizer.json"),
        "spaced": "/tmp/Jane Doe/a model/base",
        "base_model": "org/model",
        "auto_map": {"AutoConfig": "org/model--configuration.Config"},
        "eps": 1e-05,
        "use_cache": True,
        "parts": [f"at {tmp_path}/x.json", None, "hf_abcdefghijklmnopqrst"],
        "chat_template": "{{ '/tmp/data/x' }}",
        "added_tokens_decoder": {"3": {"content": "/tmp/data"}},
    }
    scrubbed = scrub_values(values, set(), [tmp_path])
    assert scrubbed == {
        **values,
        "_name_or_path": "base",
        "tokenizer_file": "tokenizer.json",
        "spaced": "base",
        "parts": ["at x.json", None, "<SECRET>"],
    }
