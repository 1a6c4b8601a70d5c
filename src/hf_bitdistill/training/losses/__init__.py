"""The losses of a training, and what they are taken of."""
