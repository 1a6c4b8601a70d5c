"""Cards of models: for people, and what the Hub reads of them.

- :mod:`.card`: one template (``template.md``) and what is known of a model for it;
- :mod:`.folder`: what a student's folder tells;
- :mod:`.base_model`: of which model it is.
"""

from .card import CARD, TAGS, TERNARY_TAGS, CardFacts, add_tags, build_card, last_evaluation, write_card


__all__ = ["CARD", "TAGS", "TERNARY_TAGS", "CardFacts", "add_tags", "build_card", "last_evaluation", "write_card"]
