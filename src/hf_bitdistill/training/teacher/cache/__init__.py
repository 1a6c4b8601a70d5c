"""A teacher's most likely tokens, written once and read in place of the teacher."""

from .reading import CachedCollator, TeacherCache
from .writing import cache_teacher_logits


__all__ = ["CachedCollator", "TeacherCache", "cache_teacher_logits"]
