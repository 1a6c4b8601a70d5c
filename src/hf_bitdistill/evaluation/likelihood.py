"""How likely a causal LM finds text: label words after a prompt, and perplexity."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch

from ..data.batch_checks import ModelLimits
from ..data.corpus import TextColumn, pack_texts
from ..data.data_files import CONTINUES
from .batching import check_finite, evaluating, forward_logits, model_device, pad_batch, padding_id
from .sharing import check_alike, check_same, is_shared, results_of, shows_progress


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _paths(words: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """The continuations to read after a prompt so that every token of every word is predicted somewhere.

    A word's last token is only predicted, never read; and a continuation that begins another is read with it. Label
    words of one token each thus need a single pass over the bare prompt.

    Returns:
        The distinct continuations, and for each word the number of the continuation that predicts it.
    """
    inner = [list(word[:-1]) for word in words]
    paths: list[list[int]] = []
    for tokens in sorted(inner, key=len, reverse=True):
        if not any(path[: len(tokens)] == tokens for path in paths):
            paths.append(tokens)
    owner = [next(i for i, path in enumerate(paths) if path[: len(tokens)] == tokens) for tokens in inner]
    return paths, owner


def _siblings(words: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """For each token of each word the tokens that may stand there, of all words that begin as this one does."""
    follow: dict[tuple[int, ...], dict[int, None]] = {}
    for word in words:
        for at, token in enumerate(word):
            follow.setdefault(tuple(word[:at]), {})[token] = None
    return [[list(follow[tuple(word[:at])]) for at in range(len(word))] for word in words]


def _deciding(words: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Each word up to the last token where another word could have gone on differently (its first token at least), and the siblings of
    these tokens."""
    siblings = _siblings(words)
    ends = [max((at + 1 for at, tokens in enumerate(each) if len(tokens) > 1), default=1) for each in siblings]
    return [list(word[:end]) for word, end in zip(words, ends, strict=True)], siblings


def label_word_scores(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    words: Sequence[Sequence[int]],
    batches: Any,
) -> tuple[torch.Tensor, int]:
    """Log-likelihood of each label word after each prompt, among the label words.

    From its second token on, a token's probability is taken among those with which a label word that begins alike can go on:
    ``log p(w_1) + sum_{i>1} (log p(w_i) - logsumexp_{v in S_i} log p(v))``, ``S_i`` the i-th tokens of all words that begin with
    ``w_1 ... w_{i-1}``. (For the first token that would take the same number from all.) So a token that no other word could have costs nothing,
    and is not even read: how many tokens a tokenizer makes of a word gives no word an advantage. The scores are, up to one number a prompt,
    the logarithms of a distribution over the words. Words of one token each: their log-likelihoods.

    Args:
        model: A causal LM, in evaluation mode.
        tokenizer: Its tokenizer (only the padding id is used).
        prompts: ``N`` token id lists.
        words: ``L`` token id lists, each at least one token, none the beginning of another.
        batches: Iterable of lists of row numbers that together cover the prompts.

    Returns:
        Scores, float32 ``[N, L]`` on the CPU, in nats, from log-probabilities over the whole vocabulary in float32; and the number of tokens the model read.

    Raises:
        FloatingPointError: If a score is not finite.
    """
    device, pad_id = model_device(model), padding_id(tokenizer)
    words, siblings = _deciding(words)
    paths, owner = _paths(words)

    def score(rows: Sequence[int]) -> tuple[list[int], torch.Tensor, int]:
        scores, tokens = torch.zeros(len(rows), len(words)), 0
        for number, path in enumerate(paths):
            mine = [index for index in range(len(words)) if owner[index] == number]
            sequences = [[*prompts[row], *path] for row in rows]
            tokens += sum(map(len, sequences))
            input_ids, mask = pad_batch(sequences, pad_id, "right", device)
            # Only positions from the shortest prompt's last token on predict anything we read.
            first = min(len(prompts[row]) for row in rows) - 1
            logits = forward_logits(model, input_ids, mask, keep=input_ids.shape[1] - first)
            at = torch.tensor([len(prompts[row]) - 1 - first for row in rows], device=logits.device)
            needed = max(len(words[index]) for index in mine)
            positions = at[:, None] + torch.arange(needed, device=logits.device)
            # Rows of words shorter than the longest read past their path; clamped, and never used.
            positions = positions.clamp(max=logits.shape[1] - 1)
            chosen = logits.gather(1, positions[:, :, None].expand(-1, -1, logits.shape[-1]))
            log_probs = chosen.float().log_softmax(dim=-1)
            for index in mine:
                word = words[index]
                found = log_probs[:, 0, word[0]]
                for step in range(1, len(word)):
                    if len(siblings[index][step]) > 1:
                        among = log_probs[:, step, siblings[index][step]].logsumexp(dim=-1)
                        found = found + log_probs[:, step, word[step]] - among
                scores[:, index] = found.cpu()
        return list(rows), scores, tokens

    check_alike(model, "the prompts and label words", lambda: chain(prompts, words))
    scores, tokens = torch.zeros(len(prompts), len(words)), 0
    for rows, found, read in results_of(model, batches, score):
        scores[rows] = found
        tokens += read
    check_finite(scores, "label-word scores")
    return scores, tokens


def perplexity(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts_or_blocks: Iterable[str | Sequence[int] | Mapping[str, Any]],
    block_size: int = 512,
    batch_size: int = 4,
    *,
    max_blocks: int | None = None,
    parse_special_tokens: bool = False,
    progress: bool = True,
) -> dict[str, float | int]:
    """Perplexity over blocks that do not overlap.

    Texts are packed as ``pack_corpus`` packs them (end-of-text after each, blocks across documents; those without text, ``None``
    or empty, are left out and counted in a warning), keeping the last, shorter block. In each block every token but the first is scored given the tokens of the block before it, so a
    smaller ``block_size`` gives a higher value: compare only values with the same one.

    Args:
        model: Any causal LM; evaluated on the device it is on, its training mode is restored.
        tokenizer: Its tokenizer.
        texts_or_blocks: Texts, or blocks of token ids, or rows of a dataset with ``input_ids`` (a result of
            ``pack_corpus``) or ``text``. Blocks are taken as they are.
        block_size: Tokens in a block made of texts.
        batch_size: Blocks per forward pass.
        max_blocks: Stop after this many blocks.
        parse_special_tokens: Whether names of special tokens in a text become tokens.
        progress: Whether to show a progress bar.

    Returns:
        ``perplexity`` (``exp`` of the next), ``nll_per_token`` (nats; logits in float32, summed in float64), and
        ``tokens`` (how many were scored).

    Raises:
        ValueError: If there is no token to score, or a block is longer than the model's context or has tokens that the model has not.
        TypeError: If the items are none of the three.
        FloatingPointError: If the model's losses are not finite.
    """
    from tqdm.auto import tqdm

    if block_size < 2 or batch_size < 1:
        raise ValueError(f"block_size must be at least 2 and batch_size at least 1, got {block_size} and {batch_size}")
    device, pad_id = model_device(model), padding_id(tokenizer)
    limits = ModelLimits.of({"model": model})
    blocks = islice(_blocks(texts_or_blocks, tokenizer, block_size, parse_special_tokens), max_blocks)
    digest, shared = hashlib.sha256(), is_shared(model)

    def batches() -> Iterator[list[list[int]]]:
        seen = 0
        with tqdm(desc="perplexity", unit="block", disable=not shows_progress(progress)) as bar:
            while batch := list(islice(blocks, batch_size)):
                limits.check_sequences(batch, "block", seen)
                seen += len(batch)
                if shared:
                    digest.update(repr(batch).encode())
                yield batch
                bar.update(len(batch))

    def score(batch: list[list[int]]) -> list[tuple[float, int]]:
        input_ids, mask = pad_batch(batch, pad_id, "right", device)
        logits = forward_logits(model, input_ids, mask)
        found = []
        # One row at a time: the float32 copy of a whole batch's logits is the largest tensor there would be.
        for row, ids in enumerate(batch):
            target = input_ids[row, 1 : len(ids)].to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits[row, : len(ids) - 1].float(), target, reduction="none")
            check_finite(loss, "losses")
            found.append((loss.double().sum().item(), len(ids) - 1))
        return found

    check_alike(model, "the options", lambda: [[block_size, batch_size, max_blocks or 0]])
    with evaluating(model):
        parts = results_of(model, batches(), score)
    # What each process read is known at its end.
    check_same(model, "the text", digest.hexdigest()[:16])
    total, tokens = 0.0, 0
    for loss, count in chain.from_iterable(parts):
        total += loss
        tokens += count
    if tokens == 0:
        raise ValueError("there is no token to score: the texts are empty or shorter than two tokens")
    nll = total / tokens
    return {"perplexity": math.exp(nll) if nll < 700 else math.inf, "nll_per_token": nll, "tokens": tokens}


def _blocks(
    items: Iterable, tokenizer: PreTrainedTokenizerBase, block_size: int, parse_special_tokens: bool
) -> Iterable[list[int]]:
    if isinstance(items, str):
        items = [items]
    contents: Iterator[tuple[Any, bool]] = map(_content, items)
    # What the items are is seen from the first that is not empty.
    empty = []
    for content in contents:
        if content[0] is not None:
            break
        empty.append(content)
    else:
        return
    first, contents = content[0], chain(empty, [content], contents)
    if isinstance(first, str):
        column = TextColumn("text")
        batches = iter(lambda: list(islice(contents, 64)), [])
        columns = (
            dict(zip(("text", CONTINUES), map(list, zip(*batch, strict=True)), strict=True)) for batch in batches
        )
        yield from pack_texts(
            map(column.texts, columns),
            tokenizer,
            block_size,
            eos=tokenizer.eos_token_id,
            drop_remainder=False,
            parse_special_tokens=parse_special_tokens,
        )
        column.warn_of_skipped()
    elif isinstance(first, (Sequence, torch.Tensor)):
        blocks = (torch.as_tensor(block).tolist() for block, _ in contents if block is not None)
        yield from (ids for ids in blocks if len(ids) > 1)
    else:
        raise TypeError(f"texts, blocks of token ids or rows are needed, not {type(first).__name__}")


def _content(item: Any) -> tuple[Any, bool]:
    """A text, a block of token ids or `None`, and whether the next text continues it."""
    if not isinstance(item, Mapping):
        return item, False
    key = "input_ids" if "input_ids" in item else "text"
    if key not in item:
        raise TypeError(f"rows must have 'input_ids' or 'text', they have {list(item)}")
    return item[key], bool(item.get(CONTINUES))
