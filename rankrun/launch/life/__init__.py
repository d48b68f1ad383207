"""The life of a run, told and steered from its folder by any shell: list, status, logs, stop, resume."""
