"""`BitNetModelForSequenceClassification`: a classification head on the native decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .cache import BitNetCache
from .in_transformers import InTransformers
from .inputs import Inputs, check_arguments, given_cache
from .modeling_base import BitNetModel


class BitNetModelForSequenceClassification(BitNetModel):
    """A ternary sequence classifier: the head sees the hidden state of each row's last token that is not padding.

    Attributes:
        score: weight of the head, float32 `[labels, hidden_size]`.
    """

    auto_model_class = AutoModelForSequenceClassification
    head = "sequence_classification"
    score: Tensor

    @classmethod
    def _in_transformers(cls, model: PreTrainedModel) -> BitNetModelForSequenceClassificationInTransformers:
        return BitNetModelForSequenceClassificationInTransformers(model)

    def _finish_loading(self, extras: Mapping[str, Tensor]) -> None:
        self.score = extras["score.weight"]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple:
        """Class logits.

        Args:
            input_ids: `[B, T]`.
            attention_mask: zeros and ones `[B, T]`; without it all tokens are real. Which token is classified then
                depends on the model's `pad_token_id`, as in transformers.
            labels: `[B]`: adds the loss of the model's `problem_type`.

        Returns:
            `logits`, float32 `[B, labels]`.

        Raises:
            ContextLengthError: a row has more tokens than the model has positions; nothing was computed.
            IndexError: a token id is not in the vocabulary; nothing was computed.
            ValueError: inputs that contradict each other, or that the native decoder cannot honour.
        """
        position_ids = kwargs.pop("position_ids", None)
        if given_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None)) is not None:
            raise ValueError("the native classifier reads whole texts and takes no cache: pass all tokens at once.")
        check_arguments(kwargs, None)
        inputs = Inputs(input_ids, attention_mask, BitNetCache(self.decoder))
        inputs.check_positions(position_ids)
        tokens = inputs.real.sum(dim=1).tolist()
        if 0 in tokens:
            raise ValueError(f"row {tokens.index(0)} is empty: attention_mask hides all of its tokens.")
        states = inputs.run(self.decoder, self._classified(inputs, input_ids)[:, None], hidden=True)
        logits = torch.stack([_class_logits(state, self.score) for state in states[:, 0]])
        loss = None
        if labels is not None:
            loss = ForSequenceClassificationLoss(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutputWithPast(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def _classified(self, inputs: Inputs, input_ids: Any) -> Tensor:
        """The column of each row whose state is classified, int64 `[B]`."""
        pad = self.config.pad_token_id
        if pad is None:
            return inputs.last_real()
        # As transformers does: the last token that is not the padding token, even if that ends the text by design.
        candidates = inputs.real & (input_ids != pad)
        last = torch.arange(inputs.width).expand(inputs.rows, -1).masked_fill(~candidates, -1).amax(dim=1)
        return torch.where(last < 0, inputs.last_real(), last)


class BitNetModelForSequenceClassificationInTransformers(InTransformers, BitNetModelForSequenceClassification):
    """A [`BitNetModelForSequenceClassification`] that the native decoder cannot compute: packed layers in transformers do."""

    def forward(self, *args: Any, **kwargs: Any) -> SequenceClassifierOutputWithPast | tuple:
        """Class logits, as transformers computes them."""
        return self.model(*args, **kwargs)


def _class_logits(state: Tensor, weight: Tensor) -> Tensor:
    """`weight @ state`, summed in one order: a matrix product of torch takes another for another number of rows.

    Args:
        state: float32 `[hidden_size]`.
        weight: float32 `[labels, hidden_size]`.

    Returns:
        float32 `[labels]`.
    """
    terms = weight.double() * state.double()
    while terms.shape[-1] > 1:
        half = (terms.shape[-1] + 1) // 2
        left, right = terms[..., :half], terms[..., half:]
        terms = left + F.pad(right, (0, half - right.shape[-1]))
    return terms[..., 0].float()
