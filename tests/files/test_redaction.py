"""Secrets in options are found and taken out."""

import copy
import pickle

import pytest

from hf_bitdistill.files.redaction import MASK, redact, redact_text, secrets_of
from hf_bitdistill.training import DistillationConfig, PretrainingConfig


SECRET = "verysecretvalue42"


def test_by_the_name_they_stand_under():
    options = {
        "token": SECRET,
        "nested": [{"use_auth_token": SECRET}, {"headers": {"Authorization": f"Bearer {SECRET}"}}],
        "storage_options": {"key": "public", "api_key": SECRET, "password": SECRET},
        "hub_token": None,
        "text": f"as in {SECRET}",
        "learning_rate": 1e-4,
        "max_tokens": 5,
        "token_count": "7",
    }
    redacted = redact(options)
    assert SECRET not in repr(redacted) and repr(redacted).count(MASK) == 6
    for name in ("hub_token", "learning_rate", "max_tokens", "token_count"):
        assert redacted[name] == options[name]
    assert options["token"] == SECRET  # a copy
    assert redact({"token": True, "hub_token": "<HUB_TOKEN>"}) == {"token": True, "hub_token": "<HUB_TOKEN>"}
    assert SECRET in secrets_of(options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://me:{SECRET}@host/x", f"https://{MASK}@host/x"),
        (f"https://host/x?access_token={SECRET}&y=1", f"https://host/x?access_token={MASK}&y=1"),
        ("use hf_abcdefghijklmnopqrstuvwx now", f"use {MASK} now"),
        ("me@host, hf_bitdistill, s3://bucket/a@b", "me@host, hf_bitdistill, s3://bucket/a@b"),
    ],
)
def test_by_their_looks(text, expected):
    assert redact_text(text) == expected


@pytest.mark.parametrize("kind", [DistillationConfig, PretrainingConfig])
def test_arguments_of_a_training(kind):
    config = kind(
        output_dir="x",
        use_cpu=True,
        hub_token=SECRET,
        teacher_model_init_kwargs={"token": SECRET, "dtype": "float32", "proxies": {"https": f"http://u:{SECRET}@p"}},
        run_name=f"run {SECRET}",
    )
    shown = [
        repr(config),
        str(config),
        repr(config.to_dict()),
        config.to_json_string(),
        repr(config.to_sanitized_dict()),
    ]
    assert not any(SECRET in text for text in shown)
    data = pickle.dumps(config)
    assert SECRET.encode() not in data
    loaded = pickle.loads(data)
    assert type(loaded) is kind and loaded.hub_token is None and loaded.learning_rate == config.learning_rate
    assert loaded.teacher_model_init_kwargs["dtype"] == "float32"
    # The run itself, and a copy in memory, have them.
    for same in (config, copy.copy(config), copy.deepcopy(config)):
        assert same.hub_token == same.teacher_model_init_kwargs["token"] == SECRET
    with pytest.raises(ValueError, match="not a JSON object") as error:
        kind(output_dir="x", use_cpu=True, teacher_model_init_kwargs=f"token={SECRET}")
    assert SECRET not in str(error.value)
