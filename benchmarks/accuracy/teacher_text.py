"""Text that a language model writes itself: training text in exactly its own domain, whatever that is."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def sample_blocks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: int,
    block_size: int,
    seed: int,
    batch_size: int = 256,
) -> torch.Tensor:
    """Blocks sampled from `model`, each from the begin-of-text token, without any truncation of its distribution.

    Args:
        blocks: how many.
        block_size: tokens of each, the first one included.
        seed: the same seed gives the same blocks on the same machine.

    Returns:
        int32 `[blocks, block_size]`, on the CPU.

    Raises:
        ValueError: the tokenizer has neither a begin-of-text nor an end-of-text token to start from.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("the tokenizer has no begin-of-text token to sample from")
    # A story may end within a block; then the next one begins there, so no token stops the generation.
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=block_size - 1,
        pad_token_id=start,
        eos_token_id=None,
    )
    configured, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    torch.manual_seed(seed)
    parts = []
    try:
        for first in range(0, blocks, batch_size):
            ids = torch.full((min(batch_size, blocks - first), 1), start, device=model.device)
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            parts.append(output.to("cpu", torch.int32))
    finally:
        model.generation_config.eos_token_id = configured
    return torch.cat(parts)
