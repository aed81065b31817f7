"""The child process that has loaded one target; `python -m engines.worker` starts it."""
