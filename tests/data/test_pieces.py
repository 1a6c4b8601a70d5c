import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_bitdistill.data import pieces
from hf_bitdistill.data.pieces import PieceCutter, calls, text_encoder


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXT = (
    'The old bridge, built in 1782, stands still.  Nobody knows why;\n\n\nsome say:\n  - "it rests"\n\tor else...\r\n\r\n'
    "Das Brückchen — très joli 漢字仮名交じり文。そして、また。 <s> </s> a_b_c  ,,,  x=3;   \n"
)


def byte_level(pattern=None, add_prefix_space=False):
    backend = Tokenizer(models.BPE())
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)]
    if pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return backend, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)


def metaspace():
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    return backend, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)


def without_words(backend):
    # Llama 2's way: merges were learned in words, but a text is not divided into words before they are applied.
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )


def wordpiece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)


KINDS = {
    "gpt2": byte_level,
    "gpt2_prefix_space": lambda: byte_level(add_prefix_space=True),
    "llama3": lambda: byte_level(LLAMA3),
    "metaspace": metaspace,
    "llama2": metaspace,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request):
    backend, trainer = KINDS[request.param]()
    backend.train_from_iterator(TEXT.splitlines(), trainer)
    if request.param == "llama2":
        without_words(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")


def in_pieces(parts, encode):
    cutter = PieceCutter(encode)
    return [*cutter.cut(parts), *cutter.finish()]


def tokens(cut, encode):
    return [token for group in calls(cut) for ids in encode([text for text, _ in group]) for token in ids]


@pytest.mark.parametrize("size", [300, 777, 2048])
def test_pieces_have_the_tokens_of_the_whole(tokenizer, monkeypatch, size):
    monkeypatch.setattr(pieces, "PIECE", size)
    monkeypatch.setattr(pieces, "_CONTEXT", 128)
    encode = text_encoder(tokenizer)
    text = "".join(f"{TEXT[i % 7 :]}{i}" for i in range(60))
    cut = in_pieces([(text, False)], encode)
    assert len(cut) > len(text) // (size + 128)
    assert max(len(piece) for piece, _ in cut) <= size + 1
    assert [continues for _, continues in cut] == [True] * (len(cut) - 1) + [False]
    assert tokens(cut, encode) == encode([text])[0]

    # The same document in parts that were cut anywhere, as a file is read.
    parts = [(text[at : at + 501], at + 501 < len(text)) for at in range(0, len(text), 501)]
    assert tokens(in_pieces(parts, encode), encode) == encode([text])[0]


def test_text_without_any_space(tokenizer, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 400)
    encode = text_encoder(tokenizer)
    text = "brückchen" * 400
    cut = in_pieces([(text, False)], encode)
    assert "".join(piece for piece, _ in cut) == text
    assert max(len(piece) for piece, _ in cut) <= 400


def test_several_documents_in_parts(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 600)
    encode = text_encoder(tiny_tokenizer)
    cutter = PieceCutter(encode)
    parts = [("a b", True), (" c", False), ("", False), ("d " * 900, True), ("e", False), ("open", True)]
    cut = [*cutter.cut(parts[:4]), *cutter.cut(parts[4:]), *cutter.finish()]
    documents, text = [], ""
    for piece, continues in cut:
        text += piece
        if not continues:
            documents.append(text)
            text = ""
    assert documents == ["a b c", "", "d " * 900 + "e", "open"]


def test_a_real_tokenizer(shared_dir, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1000)
    encode = text_encoder(AutoTokenizer.from_pretrained(shared_dir / "models" / "stories260K"))
    text = (shared_dir / "data" / "corpus" / "wikitext2_test.txt").read_text()[:100_000]
    assert tokens(in_pieces([(text, False)], encode), encode) == encode([text])[0]
