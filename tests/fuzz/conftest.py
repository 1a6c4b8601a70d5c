"""Small students that are damaged: in shards and whole, dense and a mixture, packed and online, native and not."""

import sys
from pathlib import Path

import pytest

from hf_bitdistill import pack
from students import make_student


sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def bases(tmp_path_factory, _tiny_backend) -> dict[str, Path]:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("bases")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tiny_backend), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    pack(make_student("llama", tie_word_embeddings=True)).save_pretrained(root / "shards", max_shard_size="16KB")
    tokenizer.save_pretrained(root / "shards")
    pack(make_student("qwen3_moe"), table_bits=8).save_pretrained(root / "mixture")
    make_student("qwen2").save_pretrained(root / "online")
    pack(make_student("gpt2"), table_bits=4, weight_bits=1.6).save_pretrained(root / "gpt2")
    return {folder.name: folder for folder in sorted(root.iterdir())}
