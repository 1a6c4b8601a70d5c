"""What a push changes in a card of ours, and what it leaves."""

import dataclasses

import pytest

from hf_bitdistill.hub.cards import CardFacts, card_text, is_ours
from hf_bitdistill.hub.cards.retold import given, retell, taken_over
from hf_bitdistill.modeling.sizes import KINDS, Sizes
from students import make_student


@pytest.fixture(scope="module")
def facts():
    return CardFacts("student", "me/student", make_student().config)


SIZES = Sizes(dict.fromkeys(KINDS, 1000000), 100, 9_000_000, 4_000_000)


def test_whose_card_it_is(facts):
    assert is_ours(card_text(facts))
    for text in ("", "# Mine", "---\ntags: [mine]\n---\n", "---\ntags: [\n---\n", "---\n---\nbitdistill"):
        assert not is_ours(text)


def test_another_form_and_the_bytes(facts):
    own = card_text(facts) + "\n## Mine\n\n```bash\n## Loading\n```\n"
    both = dataclasses.replace(facts, push_format="both", sizes=SIZES)
    told = retell(own, both)
    assert (
        'subfolder="online"' in told and "optimum.bitnet" in told and told.index("## Size") < told.index("## Loading")
    )
    assert told.endswith("\n## Mine\n\n```bash\n## Loading\n```\n") and "\n\n\n" not in told
    # What is said already is not said again, nor in other words.
    assert retell(told, both) == told
    edited = own.replace("With transformers:", "With transformers, as I do:")
    assert "as I do" in retell(edited, dataclasses.replace(facts, sizes=SIZES)) and "as I do" in retell(edited, both)
    assert "as I do" not in retell(edited, dataclasses.replace(facts, push_format="online"))
    # A card without such a section is left alone.
    assert retell("---\ntags: [bitdistill]\n---\n# Mine\n", both) == "---\ntags: [bitdistill]\n---\n# Mine\n"


def rebuilt(card, facts):
    return card_text(taken_over(card, facts, same_student=False))


def test_what_was_set_stays_for_another_student(facts):
    facts = dataclasses.replace(facts, base="org/base")
    old = dataclasses.replace(
        facts,
        tags=["mine"],
        metadata={"license": "mit", "language": "de", "datasets": ["org/rows"], "inference": False},
    )
    assert given(card_text(old)) == (dict(old.metadata), ["mine"])
    new = rebuilt(card_text(old), dataclasses.replace(facts, metadata={"license": "apache-2.0"}))
    assert "license: mit" in new and "language: de" in new and "inference: false" in new and "- mine" in new
    assert "org/rows" not in new
    assert "org/rows" in card_text(taken_over(card_text(old), facts, same_student=True))
    other = dataclasses.replace(facts, base="org/other", metadata={"license": "apache-2.0"})
    assert "license: apache-2.0" in rebuilt(card_text(old), other)
    unknown = dataclasses.replace(facts, base="org/other")
    assert "license: mit" in rebuilt(card_text(old), unknown)
