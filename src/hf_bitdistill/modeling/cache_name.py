"""What transformers calls the key and value cache, an argument of `forward` and a field of its output.

`past_key_values` up to 5.23; `cache` since 5.24, where the older name still works, with a warning, for the models of
transformers itself.
"""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast


CACHE_NAME = "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"
"""The installed transformers' name."""
