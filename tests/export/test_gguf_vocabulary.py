"""Tokenizers as vocabularies of GGUF."""

import itertools
import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_bitdistill.export import UnsupportedExportError
from hf_bitdistill.export.gguf_vocabulary import read_vocabulary


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def changed(tokenizer, pre_tokenizer=None, **parts):
    """The tokenizer with parts exchanged, and options of its model."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"].update(parts.pop("model", {}))
    content.update(parts)
    backend = Tokenizer.from_str(json.dumps(content))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def split(pattern):
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


def test_bytes(tiny_tokenizer):
    tiny_tokenizer.add_tokens(["<mine>"])
    found = read_vocabulary(tiny_tokenizer, 390)
    assert (found.model, found.pre, found.scores) == ("gpt2", "gpt-2", None)
    assert found.tokens[:3] == ["<pad>", "<s>", "</s>"] and found.types[:3] == [CONTROL] * 3
    assert found.tokens[384] == "<mine>" and found.types[384] == USER_DEFINED
    assert found.tokens[385:] == [f"[PAD{index}]" for index in range(385, 390)] and found.types[385:] == [UNUSED] * 5
    assert set(found.types[3:384]) == {NORMAL} and len(set(found.tokens)) == 390
    merges = json.loads(tiny_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert found.merges == [" ".join(pair) for pair in merges]
    assert found.ids == {"bos": 1, "eos": 2, "pad": 0}
    assert found.flags == {"add_bos_token": False, "add_eos_token": False} and found.chat_template is None


@pytest.mark.parametrize(
    ("pre_tokenizer", "whole", "name"),
    [
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), False, "smollm"),
        (split(LLAMA3), True, "llama-bpe"),
        (split(LLAMA3), False, "smaug-bpe"),
        (split(QWEN2), False, "qwen2"),
        (split(TEKKEN), True, "tekken"),
        (split(GPT4O), False, "gpt-4o"),
    ],
)  # fmt: skip
def test_pre_tokenizers_that_have_a_name(tiny_tokenizer, pre_tokenizer, whole, name):
    tokenizer = changed(tiny_tokenizer, pre_tokenizer, model={"ignore_merges": whole})
    assert read_vocabulary(tokenizer, 384).pre == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        split(QWEN2.replace("'s|", "")),
        split(r"\s+"),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        pre_tokenizers.Whitespace(),
        split(TEKKEN),  # without taking whole tokens, which llama.cpp does under that name
    ],
)
def test_pre_tokenizers_without_a_name_are_refused(tiny_tokenizer, pre_tokenizer):
    tokenizer = changed(tiny_tokenizer, pre_tokenizer)
    with pytest.raises(UnsupportedExportError, match=r"none of those that are known here.*--pre_tokenizer"):
        read_vocabulary(tokenizer, 384)
    assert read_vocabulary(tokenizer, 384, pre="some-name").pre == "some-name"


def test_what_gguf_has_no_words_for_is_refused(tiny_tokenizer):
    lower = changed(tiny_tokenizer, normalizer={"type": "Lowercase"})
    with pytest.raises(UnsupportedExportError, match="normalizer 'Lowercase'"):
        read_vocabulary(lower, 384)
    assert "normal form C" in read_vocabulary(changed(tiny_tokenizer, normalizer={"type": "NFC"}), 384).notes[0]
    with pytest.raises(UnsupportedExportError, match="has id 383, but the embedding has 383 rows"):
        read_vocabulary(tiny_tokenizer, 383)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(UnsupportedExportError, match="type 'WordLevel'"):
        read_vocabulary(words, 1)
    around = changed(tiny_tokenizer)
    around.backend_tokenizer.post_processor = processors.TemplateProcessing("<pad> $A", "<pad> $A $B", [("<pad>", 0)])
    with pytest.raises(UnsupportedExportError, match="puts other tokens around a text"):
        read_vocabulary(around, 384)
    endless = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(UnsupportedExportError, match="no token that ends a text"):
        read_vocabulary(endless, 384)
    assert read_vocabulary(endless, 384, end_ids=[7, 8]).ids == {"eos": 7, "bos": 7, "eot": 8}


def test_tokens_around_a_text(tiny_tokenizer):
    around = changed(tiny_tokenizer)
    template = [("<s>", 1), ("</s>", 2)]
    around.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A $B </s>", template)
    around.chat_template = {"default": "{{ messages }}", "tool use": "{{ tools }}"}
    found = read_vocabulary(around, 384)
    assert found.flags == {"add_bos_token": True, "add_eos_token": True}
    assert found.chat_template == around.chat_template


PIECES = ["▁the", "he", "▁t", "re", "▁r", "▁re", "ee", "tree", "▁tree", "tr", "▁", "t", "h", "e", "r"]


def sentence_pieces(pieces=PIECES, drop=(), **options):
    """A tokenizer as transformers makes one of a SentencePiece model: every way to make a piece is a merge, best piece first."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    merges = [merge for merge in merges if merge not in drop]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


def by_scores(text, vocabulary):
    """Ids of a text as llama.cpp's vocabulary `llama` gives them: the pair of neighbours whose token has the highest score is merged first."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    prefix = " " if vocabulary.flags["add_space_prefix"] else ""
    symbols = list((prefix + text).replace(" ", "▁"))
    while True:
        pairs = [
            (vocabulary.scores[ids[a + b]], -at)
            for at, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in ids
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [
        index
        for symbol in symbols
        for index in ([ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()])
    ]


@pytest.mark.parametrize("text", ["the tree", "there", "he heree ttree", "thé\ntrée", "", "  tree"])
def test_pieces_merge_by_score_as_by_rank(text):
    tokenizer = sentence_pieces()
    found = read_vocabulary(tokenizer, 280)
    assert (found.model, found.merges, found.flags["add_space_prefix"]) == ("llama", None, True)
    assert found.types[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE] and found.types[259] == NORMAL
    if text:
        assert by_scores(text, found) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_real_tokenizer_of_pieces(shared_dir):
    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "models/stories260K")
    found = read_vocabulary(tokenizer, 512)
    assert found.flags == {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}
    for text in (
        "Once upon a time, there was a little girl named Lily.",
        'He said: "Don\'t go!"\n\n10 % of ünïcode ✓',
    ):
        assert by_scores(text, found) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_pieces_that_scores_cannot_say_are_refused():
    with pytest.raises(UnsupportedExportError, match="does not merge 'tr' and 'ee'"):
        read_vocabulary(sentence_pieces(drop={("tr", "ee")}), 280)
    split_up = sentence_pieces()
    content = json.loads(split_up.backend_tokenizer.to_str())
    merges = content["model"]["merges"]
    merges.append(merges.pop(next(at for at, pair in enumerate(merges) if "".join(pair) == "▁tree")))
    content["model"]["merges"] = [["▁t", "re"], *merges]
    content["model"]["vocab"]["▁tre"] = len(content["model"]["vocab"])
    content["model"]["merges"].append(["▁", "tre"])
    content["model"]["vocab"]["tre"] = len(content["model"]["vocab"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    with pytest.raises(UnsupportedExportError, match="make '▁tre' at different ranks"):
        read_vocabulary(tokenizer, 290)
    spaced = sentence_pieces()
    spaced.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
    )
    with pytest.raises(UnsupportedExportError, match="in another way than SentencePiece"):
        read_vocabulary(spaced, 280)
    spaced.backend_tokenizer.normalizer = None
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", False)
    assert read_vocabulary(spaced, 280).flags["add_space_prefix"] is False


def test_tokens_that_end_an_answer(tiny_tokenizer):
    found = read_vocabulary(tiny_tokenizer, 384, end_ids=[2, 7, 8, 9])
    assert (found.ids["eos"], found.ids["eot"], found.ids["eom"]) == (2, 7, 8)
    assert any("no place in a GGUF file: [9]" in note for note in found.notes)


def test_added_tokens_that_take_spaces_are_told(tiny_tokenizer):
    assert read_vocabulary(tiny_tokenizer, 384).notes == [
        "llama.cpp leaves out spaces before punctuation when it writes tokens of 'gpt-2' as text"
    ]
    tiny_tokenizer.add_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<mine>", single_word=True)])
    tiny_tokenizer.add_tokens([AddedToken(f"<end{index}>", rstrip=True, special=True) for index in range(5)])
    before, behind, whole, _ = read_vocabulary(tiny_tokenizer, 391).notes
    assert (
        before == "the added tokens '<mask>' take the spaces before them here (lstrip), which a GGUF file cannot say"
    )
    assert "'<end0>', '<end1>', '<end2>' and 2 more take the spaces behind them" in behind
    assert "'<mine>' are found as whole words only here (single_word)" in whole


def test_a_space_before_a_text_that_has_one(tiny_tokenizer):
    pieces = sentence_pieces()
    assert not any("puts a space" in note for note in read_vocabulary(pieces, 300).notes)
    pieces.backend_tokenizer.normalizer = None
    pieces.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    assert any("puts a space also before" in note for note in read_vocabulary(pieces, 300).notes)
