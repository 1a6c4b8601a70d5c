"""Cards of models: for people, and what the Hub reads of them.

- :mod:`.card`: one template (``template.md``) and what is known of a model for it;
- :mod:`.folder_facts`: what a student's folder tells;
- :mod:`.base_model_id`: of which model it is, and under which licence;
- :mod:`.retold`: a card that is there already, told of what is published.
"""

from .card import (
    CARD,
    EVAL_RESULTS,
    TAGS,
    TERNARY_TAGS,
    CardFacts,
    add_tags,
    build_card,
    card_text,
    is_ours,
    last_evaluation,
    set_aside,
    write_card,
)


__all__ = [
    "CARD",
    "EVAL_RESULTS",
    "TAGS",
    "TERNARY_TAGS",
    "CardFacts",
    "add_tags",
    "build_card",
    "card_text",
    "is_ours",
    "last_evaluation",
    "set_aside",
    "write_card",
]
