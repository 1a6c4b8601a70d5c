"""The plain text of a benchmark as blocks of token ids."""

from __future__ import annotations

from pathlib import Path

import docstrings
import torch
from datasets import Dataset
from settings import TextSettings
from teacher_text import sample_blocks
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_bitdistill.data import load_corpus, pack_corpus


# No text of the corpora used here has fewer than one token for so many characters.
_CHARACTERS_A_TOKEN = 10
_HELD_OUT_SEED = 10_000


class Texts:
    """Training blocks and held-out blocks.

    Args:
        settings: of the text.
        data_dir: the folder with `corpus/`, for `source="corpus"`.
        cache: a folder for sampled text.
        teacher: samples the text for `source="teacher"`.
    """

    def __init__(
        self,
        settings: TextSettings,
        tokenizer: PreTrainedTokenizerBase,
        data_dir: Path | None,
        cache: Path,
        teacher: PreTrainedModel,
    ):
        self.settings, self.tokenizer, self.cache, self.teacher = settings, tokenizer, cache, teacher
        self.corpus = None if data_dir is None else data_dir / "corpus"
        if settings.source == "corpus" and self.corpus is None:
            raise SystemExit("this benchmark reads a corpus: give --data_dir")

    def training(self, tokens: int, seed: int) -> Dataset:
        """Blocks of at least `tokens` tokens (of all there are, if there are fewer), in an order of that seed."""
        settings = self.settings
        if settings.source == "teacher":
            blocks = self._sampled(settings.sampled_tokens // settings.block_size, 0)
            order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
            blocks = blocks[order[: -(-tokens // settings.block_size)]].tolist()
            return Dataset.from_dict({"input_ids": blocks, "labels": blocks})
        corpus = self._corpus("train").shuffle(seed=seed)
        characters, count = 0, 0
        for text in corpus["text"]:
            if characters > _CHARACTERS_A_TOKEN * tokens:
                break
            characters, count = characters + len(text), count + 1
        return pack_corpus(corpus.select(range(count)), self.tokenizer, settings.block_size)

    def held_out(self) -> dict[str, list[list[int]]]:
        """Blocks for perplexities, by name."""
        settings = self.settings
        if settings.source == "teacher":
            return {"teacher_samples": self._sampled(settings.eval_blocks, _HELD_OUT_SEED).tolist()}
        held_out = {}
        for split in settings.splits:
            blocks = pack_corpus(self._corpus(split), self.tokenizer, settings.block_size)
            held_out[split] = list(blocks[: settings.eval_blocks]["input_ids"])
        return held_out

    def _corpus(self, split: str) -> Dataset:
        """Documents of a split, in the column `text`."""
        if self.settings.source == "docstrings":
            return Dataset.from_dict({"text": docstrings.texts(split)}).shuffle(seed=_HELD_OUT_SEED)
        return load_corpus(self.corpus, split)

    def _sampled(self, blocks: int, seed: int) -> torch.Tensor:
        file = self.cache / f"teacher_text-{blocks}x{self.settings.block_size}-{seed}.pt"
        if not file.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            sampled = sample_blocks(self.teacher, self.tokenizer, blocks, self.settings.block_size, seed)
            temporary = file.with_suffix(".tmp")
            torch.save(sampled, temporary)
            temporary.rename(file)
        return torch.load(file)
