"""What `generate` of transformers may be asked of the native decoder, and where its output ends."""

from __future__ import annotations

import copy
import logging

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode


logger = logging.getLogger(__name__)

KEPT_BY_GENERATE = ("tokenizer", "assistant_tokenizer", "assistant_model", "streamer", "synced_gpus")
"""Arguments that mean something to the loop of `generate` alone; it hands some of them to the model all the same."""

# Options that the native decoder cannot honour, and why. Not set: `None` or `False`.
_REFUSED = {
    "assistant_early_exit": "its layers cannot be run one by one",
    "dola_layers": "it gives no hidden states of its layers",
    "output_attentions": "it keeps no attention weights",
    "output_hidden_states": "it gives no hidden states of its layers",
    "speculation_type": "it gives no hidden states of its layers",
    "use_mtp": "it has no layers that predict several tokens",
}


def check_options(config: GenerationConfig) -> None:
    """Refuse options that would have to change what is computed and cannot.

    Raises:
        ValueError: naming the option.
    """
    for name, reason in _REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value is not False:
            raise ValueError(f"{name}={value!r} is not for the native decoder: {reason}. Leave it out.")
    if config.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"cache_implementation={config.cache_implementation!r} is not for the native decoder, which has a cache of "
            "its own; leave it out."
        )
    if config.get_generation_mode() == GenerationMode.CONTRASTIVE_SEARCH:
        raise ValueError(
            f"penalty_alpha={config.penalty_alpha!r} (contrastive search) is not for the native decoder: it gives no hidden "
            "states. Leave it out."
        )
    if config.is_assistant and not (config.output_scores and config.return_dict_in_generate):
        raise ValueError(
            "is_assistant=True, which transformers sets for a model that drafts for another one, needs output_scores=True "
            "and return_dict_in_generate=True."
        )


def only_the_greatest_counts(processors: LogitsProcessorList, config: GenerationConfig) -> bool:
    """Whether nothing looks at the logits but an argmax: greedy decoding, no processor, nothing returned but tokens."""
    returned = config.return_dict_in_generate and (config.output_scores or config.output_logits)
    return not (config.do_sample or returned or processors)


def end_with_context(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    stopping_criteria: StoppingCriteriaList,
    config: GenerationConfig,
    max_positions: int,
) -> tuple[StoppingCriteriaList, GenerationConfig]:
    """Stopping criteria and configuration under which no row grows beyond the model's positions.

    Args:
        input_ids: prompts `[B, T]`.
        attention_mask: `[B, T]`, `None`: no padding.

    Raises:
        ValueError: a prompt has no token.
    """
    width = longest = input_ids.shape[1]
    if attention_mask is not None:
        lengths = attention_mask.sum(dim=1).tolist()
        if 0 in lengths:
            raise ValueError(
                f"row {lengths.index(0)} of the prompts is empty: attention_mask hides all of its tokens."
            )
        longest = int(max(lengths))
    elif width == 0:
        raise ValueError("the prompt is empty: there is no token to go on from.")
    room = max_positions - longest + 1  # the last token is not read
    asked = config.max_length - width
    if room < 1 or asked <= room:  # without room the decoder refuses the prompt
        return stopping_criteria, config
    logger.warning(
        f"{asked} new tokens are asked for, but the prompt has {longest} tokens and the model {max_positions} positions "
        f"(max_position_embeddings): the output ends after {room} new tokens."
    )
    config = copy.copy(config)
    config.max_length = width + room
    return StoppingCriteriaList([MaxLengthCriteria(config.max_length), *stopping_criteria]), config
