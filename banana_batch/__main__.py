"""The command: `banana-batch` and `python -m banana_batch` are the same program."""
