"""`BitNetModelForCausalLM`: text generation on the native decoder."""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import GENERATION_CONFIG_NAME

from hf_bitdistill._compat import cached_file_or_none, mark_as_given
from hf_bitdistill.files.json_files import read_json
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.modeling.cache_name import CACHE_NAME
from hf_bitdistill.modeling.preflight import describe_error

from .cache import BitNetCache
from .candidates import SCHEDULES, Candidates, Price
from .generation import KEPT_BY_GENERATE, check_options, end_with_context, only_the_greatest_counts
from .in_transformers import InTransformers
from .inputs import Inputs, check_arguments, given_cache
from .modeling_base import BitNetModel
from .sampling import draw_in_processors


class BitNetModelForCausalLM(BitNetModel, GenerationMixin):
    """A ternary causal LM; use it like a model of transformers.

    ```python
    model = BitNetModelForCausalLM.from_pretrained("me/my-student")
    model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=32)
    ```
    """

    auto_model_class = AutoModelForCausalLM
    head = "causal_lm"
    _is_stateful = False

    generation_config: GenerationConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # What a candidate of prompt lookup costs, by the number of threads, as far as earlier texts told it.
        self._candidate_prices: defaultdict[int | None, Price] = defaultdict(Price)

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def _in_transformers(cls, model: PreTrainedModel) -> BitNetModelForCausalLMInTransformers:
        return BitNetModelForCausalLMInTransformers(model)

    def _load_generation_config(self, model_id: str, hub: dict[str, Any]) -> None:
        given = self._read_generation_config(model_id, hub)
        self.generation_config = GenerationConfig.from_model_config(self.config) if given is None else given

    @classmethod
    def _read_generation_config(cls, model_id: str, hub: dict[str, Any]) -> GenerationConfig | None:
        file = cached_file_or_none(model_id, GENERATION_CONFIG_NAME, **hub)
        if file is None:
            return None
        read_json(Path(file))  # transformers passes over a damaged one
        try:
            return GenerationConfig.from_pretrained(model_id, **hub)
        except Exception as error:  # whatever it raises for values that it does not expect
            raise CheckpointError(f"{file}: {describe_error(error)}") from error

    def _save_pretrained(self, save_directory, max_shard_size: str = "50GB", **stored) -> None:
        super()._save_pretrained(save_directory, max_shard_size, **stored)
        self.generation_config.save_pretrained(save_directory)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate` of transformers, with all of its options but those that look into the model (`output_hidden_states`,
        other caches, ...). Prompts may be padded on either side. The output ends with the model's positions, with a warning.

        Prompt lookup (`prompt_lookup_num_tokens`) with `num_assistant_tokens_schedule="heuristic"` reads as many candidates as those before
        make worth while, `prompt_lookup_num_tokens` at most, and none where none was right. Greedy output is the same in any case.

        Raises:
            ContextLengthError: a prompt has more tokens than the model has positions.
            IndexError: a token id is not in the vocabulary; names it and its place.
            ValueError: an option that the native decoder cannot honour, or an empty prompt.
        """
        mask = kwargs.get("negative_prompt_attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError(
                "negative_prompt_attention_mask: negative prompts must be padded on the left, their last column is read"
            )
        return super().generate(*args, **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Continuous batching: on the transformers path only."""
        return self._continuous_batching("generate_batch")(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Continuous batching: on the transformers path only."""
        return self._continuous_batching("init_continuous_batching")(*args, **kwargs)

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Continuous batching: on the transformers path only."""
        return self._continuous_batching("continuous_batching_context_manager")(*args, **kwargs)

    def _continuous_batching(self, name: str) -> Any:
        raise ValueError(f"{name} (continuous batching) is not for the native decoder: give generate a batch.")

    def get_output_embeddings(self) -> nn.Module:
        """The output head: on the transformers path only.

        Raises:
            ValueError: the native decoder computes. Sampling with an assistant of another tokenizer asks for the assistant's.
        """
        raise ValueError(
            "the native decoder's output head cannot be taken out. With do_sample=True transformers replaces that of an "
            "assistant which has another tokenizer: load the assistant with transformers, or use do_sample=False."
        )

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one forward pass."""
        for name in KEPT_BY_GENERATE:
            kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def _prepare_generation_config(self, *args, **kwargs):
        generation_config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        check_options(generation_config)
        return generation_config, model_kwargs

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):  # type: ignore[override]  # handed on
        """Greedy decoding and sampling."""
        logits_processor, generation_config = draw_in_processors(logits_processor, generation_config)
        if only_the_greatest_counts(logits_processor, generation_config):
            kwargs["only_greatest"] = True
        criteria, config = self._end_with_context(input_ids, stopping_criteria, generation_config, kwargs)
        return super()._sample(input_ids, logits_processor, criteria, config, **kwargs)

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):  # type: ignore[override]  # handed on
        criteria, config = self._end_with_context(input_ids, stopping_criteria, generation_config, kwargs)
        return super()._beam_search(input_ids, logits_processor, criteria, config, **kwargs)

    def _assisted_decoding(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):  # type: ignore[override]  # handed on
        # Of prompt lookup: a model that drafts is handed the same arguments, and another one does not know this.
        looks_up = generation_config.prompt_lookup_num_tokens is not None
        if looks_up and only_the_greatest_counts(logits_processor, generation_config):
            kwargs["only_greatest"] = True
        criteria, config = self._end_with_context(input_ids, stopping_criteria, generation_config, kwargs)
        return super()._assisted_decoding(input_ids, logits_processor, criteria, config, **kwargs)

    def _end_with_context(self, input_ids, stopping_criteria, generation_config, model_kwargs):
        return end_with_context(
            input_ids,
            model_kwargs.get("attention_mask"),
            stopping_criteria,
            generation_config,
            self.decoder.spec.max_positions,
        )

    def _prefill(self, input_ids, generation_config, *args, **kwargs):
        # The decoder cuts a prompt up by itself. Pieces cut here may hold nothing but padding for a row, and then no logits.
        if generation_config.prefill_chunk_size is not None:
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
        return super()._prefill(input_ids, generation_config, *args, **kwargs)

    def _get_candidate_generator(self, generation_config, *args, **kwargs):
        generator = super()._get_candidate_generator(generation_config, *args, **kwargs)
        if not isinstance(generator, PromptLookupCandidateGenerator):
            return generator
        adapts = generation_config.num_assistant_tokens_schedule in SCHEDULES
        price = None if generation_config.do_sample else self._candidate_prices[self.decoder.num_threads]
        return Candidates(generator, self.decoder.spec.max_positions, adapts, price)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:  # type: ignore[override]  # handed on
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None:
            mark_as_given(cache)
        elif generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = BitNetCache(self.decoder)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: BitNetCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        cache: BitNetCache | None = None,
        only_greatest: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits of new tokens.

        Args:
            input_ids: `[B, T]`.
            attention_mask: zeros and ones `[B, past + T]`, past columns as they were given before. Padding may be
                anywhere; it takes no part in anything, nor in the width of a sliding window, which transformers counts in columns.
            past_key_values: the older name of `cache`.
            labels: `[B, T]`, -100 where there is none: adds the shifted cross entropy as `loss`, without what padding would predict.
            logits_to_keep: 0: logits of all T columns; n: of the last n; 1 means each row's last real token, wherever
                padding is; or columns, int64 `[n]`.
            cache: of a previous call; it is extended in place.
            only_greatest: logits that are certainly less than the greatest one of their column may be -inf, which takes less time with
                an 8-bit head. Greedy decoding asks for it.
            position_ids: accepted if they are what the mask says: consecutive numbers of real tokens from 0.

        Returns:
            `logits`, float32 `[B, columns kept, vocab_size]`, zeros at padding, and the cache (unless
            `use_cache=False`) under the name that the installed transformers has for it: `cache` since 5.24,
            `past_key_values` before.

        Raises:
            ContextLengthError: a row would have more tokens than the model has positions; nothing was computed.
            IndexError: a token id is not in the vocabulary; nothing was computed.
            ValueError: inputs that contradict each other, or that the native decoder cannot honour.
        """
        cache = given_cache(cache, past_key_values)
        only_greatest = only_greatest and labels is None
        position_ids = kwargs.pop("position_ids", None)
        check_arguments(kwargs, cache)
        if cache is not None and cache.decoder is not self.decoder:
            raise ValueError("this is the cache of another model.")
        cache = cache if cache is not None else BitNetCache(self.decoder)
        inputs = Inputs(input_ids, attention_mask, cache)
        inputs.check_positions(position_ids)
        logits = inputs.run(self.decoder, inputs.columns(logits_to_keep), greatest=only_greatest)
        loss = None
        if labels is not None:
            if logits.shape[1] != labels.shape[1]:
                raise ValueError("labels need the logits of all columns (logits_to_keep=0).")
            if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape == labels.shape:
                # Padding predicts nothing: not the first token behind it either.
                labels = labels.clone()
                labels[:, 1:].masked_fill_((attention_mask[:, :-1] == 0).to(labels.device), -100)
            loss = ForCausalLMLoss(logits, labels, vocab_size=logits.shape[-1])
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, **cast(Any, {CACHE_NAME: None if use_cache is False else cache})
        )
        return output.to_tuple() if return_dict is False else output


class BitNetModelForCausalLMInTransformers(InTransformers, BitNetModelForCausalLM):
    """A [`BitNetModelForCausalLM`] that the native decoder cannot compute: packed layers in transformers do."""

    @property
    def generation_config(self) -> GenerationConfig:
        """That of the model of transformers, which generates."""
        return self.model.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.model.generation_config = config

    def _load_generation_config(self, model_id: str, hub: dict[str, Any]) -> None:
        """The model of transformers has loaded it."""

    def generate(self, *args, **kwargs):
        """`generate` of the model of transformers."""
        return self.model.generate(*args, **kwargs)

    def _continuous_batching(self, name: str) -> Any:
        return getattr(self.model, name)

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.model.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        cache: Any = None,
        only_greatest: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits of new tokens, as transformers computes them: all of them, whatever `only_greatest` says."""
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            return_dict=return_dict,
            **{CACHE_NAME: given_cache(cache, past_key_values)},
            **kwargs,
        )
