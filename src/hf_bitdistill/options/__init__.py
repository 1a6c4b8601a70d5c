"""Dataclasses as options of a command: read from flags and files, and explained."""
