"""Registration in programs that never import this package.

`hook.py` waits for transformers; Python runs it at its start. For one program (`programs.py`) by the environment variable PYTHONPATH, which
its own children have too; for every program of an environment (`start_file.py`) by a start-up file of `site`.
"""
