"""What a training program is made of, part by part; `train.py` joins them in the order that a person should read.

Only `rankrun.training.*` and the launcher's agent import torch. `reporting`, `notice`, `opening` and `log` don't, so
that a mistake in a config is told before torch is loaded.
"""
