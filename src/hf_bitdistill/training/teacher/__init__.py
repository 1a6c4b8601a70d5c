"""The teacher of a training: loaded, placed, or read from a cache."""
