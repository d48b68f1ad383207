"""The package's front: names that load when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rankrun.config


def test_every_public_name_is_there() -> None:
    for name in rankrun.config.__all__:
        assert getattr(rankrun.config, name) is not None
    assert dir(rankrun.config) == rankrun.config.__all__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'rankrun\.config' has no attribute 'nothing'"):
        _ = rankrun.config.nothing


def test_resolving_a_config_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, rankrun.config as c; s = c.resolve('configs/digits.yaml'); c.dump(s); "
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
