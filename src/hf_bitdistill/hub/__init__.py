"""Publishing on the Hugging Face Hub:

- :mod:`.push`: [`push_to_hub`], which every other way of pushing calls;
- :mod:`.source`: which models and documents a folder or a model offers;
- :mod:`.published_card`: the card of an upload;
- :mod:`.scrubbing`: local paths and secrets, which no upload holds;
- :mod:`.upload`: one commit, which takes the place of the weights that were there.
"""

from .push import PUSH_FORMATS, push_to_hub


__all__ = ["PUSH_FORMATS", "push_to_hub"]
