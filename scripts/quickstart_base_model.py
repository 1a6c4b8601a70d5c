"""How the small Llama that the quickstart starts from is made, and its tokenizer. What ships is the result."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed


END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
MAX_POSITIONS = 512
_WHOLE_WORD_REPEATS = 20_000


def train_tokenizer(texts: Iterable[str], vocab_size: int, whole_words: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer. Digits are single tokens; every text can be written and read back exactly.

    Args:
        texts: what its merges are learnt from.
        vocab_size: at least 258 (256 bytes and two special tokens).
        whole_words: words that shall be one token (with the space before them), if the vocabulary is large enough:
            with label words of one token each, an example is classified in one pass.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # So frequent that these merges come first.
    repeated = (f" {word}" for word in whole_words for _ in range(_WHOLE_WORD_REPEATS))
    tokenizer.train_from_iterator(chain(texts, repeated), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_base_model(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int = 192, layers: int = 3, seed: int = 0
) -> LlamaForCausalLM:
    """An untrained Llama with heads of 32 channels and tied embeddings.

    It is rather wide than deep: ternary weights ask for width, and few layers keep the demo short.
    """
    set_seed(seed)
    heads = hidden_size // 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
