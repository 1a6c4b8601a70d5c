import re

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from hf_bitdistill.data.conversations import encode_completions, encode_conversations


TEMPLATE = (
    "{% if tools %}<s>tools: {{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
# Removes what was thought in all turns but the last, as templates of reasoning models do.
FORGETFUL = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content if loop.last else m.content.split('|')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def say(role, content, **more):
    return {"role": role, "content": content, **more}


CHAT = [
    say("system", "be brief"),
    say("user", "a"),
    say("assistant", "b b"),
    say("user", "c"),
    say("assistant", "d d"),
]


def learned(encoded, tokenizer, row=0):
    example = encoded.dataset[row]
    assert len(example["input_ids"]) == len(example["labels"]) == len(example["attention_mask"])
    kept = [
        (token, label) for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100
    ]
    assert all(token == label for token, label in kept)
    return tokenizer.decode([label for _, label in kept])


@pytest.mark.parametrize(("turns", "expected"), [("all", "b b</s>d d</s>"), ("last", "d d</s>")])
def test_the_assistant_alone_is_learned(tiny_tokenizer, turns, expected):
    tiny_tokenizer.chat_template = TEMPLATE
    rows = [CHAT, CHAT[:2], [], [say("user", "x" * 400), say("assistant", "y")]]
    encoded = encode_conversations(Dataset.from_dict({"messages": rows}), tiny_tokenizer, 200, turns=turns)
    assert learned(encoded, tiny_tokenizer) == expected
    assert encoded.left_out == {"no assistant turn": 1, "empty": 1, "longer than max_length": 1}
    assert len(encoded.dataset) == 1
    rendered = tiny_tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tiny_tokenizer.decode(encoded.dataset[0]["input_ids"]) == rendered


def test_tool_calls_are_kept(tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    call = [{"name": "weather"}]
    rows = [[say("user", "rain ?"), say("assistant", "", tool_calls=call), say("tool", "no"), say("assistant", "dry")]]
    dataset = Dataset.from_list([{"messages": rows[0], "tools": [{"name": "weather"}]}])
    text = learned(encode_conversations(dataset, tiny_tokenizer, 400), tiny_tokenizer)
    assert "weather" in text
    assert text.endswith("dry</s>")
    assert "no" not in text


def test_a_call_has_its_own_arguments_alone(tmp_path, tiny_tokenizer):
    """All records of a column of Parquet have the keys of all others."""
    tiny_tokenizer.chat_template = TEMPLATE

    def talk(name, arguments):
        call = [{"function": {"name": name, "arguments": arguments}}]
        tools = [{"name": name, "parameters": {each: {"type": "string"} for each in arguments}}]
        return {"messages": [say("user", "go"), say("assistant", "", tool_calls=call)], "tools": tools}

    rows = [talk("weather", {"city": "Bern"}), talk("search", {"query": "tea", "years": {"after": 1901}})]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet")
    dataset = Dataset.from_parquet(str(tmp_path / "calls.parquet"))
    encoded = encode_conversations(dataset, tiny_tokenizer, 2000)
    weather, search = (tiny_tokenizer.decode(row) for row in encoded.dataset["input_ids"])
    assert weather.count('"city"') == 2 and "Bern" in weather and not re.search("null|query|years", weather)
    assert search.count('"query"') == 2 and "1901" in search and not re.search("null|city", search)
    # What somebody wrote stays: in JSON text, and in rows of no table.
    text = talk("weather", '{"city": null}')
    del text["tools"]
    assert "null" in learned(encode_conversations(Dataset.from_list([text]), tiny_tokenizer, 2000), tiny_tokenizer)
    own = [talk("weather", {"city": None})]
    assert "null" in learned(encode_conversations(own, tiny_tokenizer, 2000), tiny_tokenizer)


def test_a_template_that_rewrites_earlier_turns(tiny_tokenizer):
    tiny_tokenizer.chat_template = FORGETFUL
    rows = [[say("user", "a"), say("assistant", "hm|b"), say("user", "c"), say("assistant", "so|d")]]
    encoded = encode_conversations(Dataset.from_dict({"messages": rows}), tiny_tokenizer, 200)
    assert learned(encoded, tiny_tokenizer) == "so|d</s>"


def test_completions(tiny_tokenizer):
    rows = [
        {"prompt": "a b", "completion": " c d"},
        {"prompt": "", "completion": "x"},
        {"prompt": "x", "completion": None},
    ]
    encoded = encode_completions(Dataset.from_list(rows), tiny_tokenizer, 64)
    assert learned(encoded, tiny_tokenizer) == " c d</s>"
    assert encoded.left_out == {"empty": 2}
    tiny_tokenizer.chat_template = TEMPLATE
    messages = [{"prompt": CHAT[:4], "completion": CHAT[4:]}]
    assert learned(encode_completions(Dataset.from_list(messages), tiny_tokenizer, 200), tiny_tokenizer) == "d d</s>"


def test_refusals(tiny_tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        encode_conversations(Dataset.from_dict({"messages": [CHAT]}), tiny_tokenizer, 64)
    tiny_tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="no example is left to train on: 1 longer than max_length"):
        encode_conversations(Dataset.from_dict({"messages": [CHAT]}), tiny_tokenizer, 4)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            ["user: a", "assistant: b"],
            "row 1: a conversation is a list of messages with role and content, and message 0 is 'user: a' (str)",
        ),
        ("user: a", "row 1: a conversation is a list of messages with role and content, it is 'user: a' (str)"),
        ({"role": "user", "content": "a"}, "(dict)"),
        (
            [say("user", "a"), say("user", "b"), say("assistant", "c")],
            "row 1: the chat template refuses the conversation: twice a user",
        ),
        ([say("user", 3), say("assistant", "c")], "row 1: the chat template refuses the conversation"),
    ],
)
def test_what_is_no_conversation_is_named(tiny_tokenizer, messages, message):
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' and not loop.first and loop.previtem.role == 'user' %}"
        "{{ raise_exception('twice a user') }}{% endif %}{{ m.role + ': ' + m.content }}</s>{% endfor %}"
    )
    rows = [{"messages": CHAT[1:]}, {"messages": messages}]
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_conversations(rows, tiny_tokenizer, 200)
    with pytest.raises(
        ValueError, match=r"row 0: prompt and completion must both be strings .*, they are list and str"
    ):
        encode_completions([{"prompt": CHAT, "completion": "b"}], tiny_tokenizer, 200)
