"""This machine, and the processes of one run on it."""
