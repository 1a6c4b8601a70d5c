"""Trainings that go on where they stopped, and stop where they must."""
