from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rankrun.config import Settings, resolve
from rankrun.errors import ConfigError

LEAST = "data: {train: t.txt}\ntrain: {epochs: 2, global_batch: 8}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a config into an empty current folder; returns its path, relative so that messages are short."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "c.yaml") -> Path:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Path(name)

    return write


@pytest.fixture
def problems(write: Callable[..., Path]) -> Callable[..., list[str]]:
    """The problems of a config given as text, with overrides; none is an empty list."""

    def problems(text: str | bytes, *overrides: str, env: dict[str, str] | None = None) -> list[str]:
        found: list[str] = []
        try:
            resolve(write(text), overrides, env=env)
        except ConfigError as error:
            found = error.problems
        assert all(line.isprintable() for line in found)
        return found

    return problems


@pytest.fixture
def settings_of(write: Callable[..., Path]) -> Callable[..., Settings]:
    """The settings of a config given as text, over the least that a config needs."""

    def settings_of(*overrides: str, env: dict[str, str] | None = None) -> Settings:
        return resolve(write(LEAST), overrides, env=env)

    return settings_of
