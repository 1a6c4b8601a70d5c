"""The command line, `bitdistill`. One implementation: every command is a module with `add_arguments` and `run`."""
