from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankrun.config import describe, schema
from rankrun.config.keys import fields
from rankrun.config.settings import Settings
from rankrun.errors import OptionError

SCHEMA_FILE = Path(__file__).parents[2] / "configs" / "schema.json"


def test_the_editors_schema_is_the_one_that_is_checked_in() -> None:
    cure = "write json.dumps(rankrun.config.schema(), indent=1) and a newline to configs/schema.json to accept it"
    assert json.loads(SCHEMA_FILE.read_text()) == schema(), cure


def test_the_editors_schema_knows_base_and_requires_nothing() -> None:
    made = schema()
    assert "base" in made["properties"]
    assert "required" not in made
    assert made["additionalProperties"] is False
    assert all("required" not in part for part in made["$defs"].values())


def test_every_key_and_section_is_described() -> None:
    for key, info in fields().items():
        assert info.description, key
        assert describe(key).startswith(f"{key}: ")
    for name in Settings.model_fields:
        assert describe(name)
    assert all(key in describe() for key in fields())


def test_a_key_at_length() -> None:
    assert describe("data.workers") == (
        "data.workers: loader processes per rank; 0: load in the training process\n"
        "  may hold      a whole number from 0 to 4096\n"
        "  default       2\n"
        "  within a run  may change"
    )
    assert "--allow-change optim.lr" in describe("optim.lr")
    assert "  default       (required)" in describe("train.epochs")


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'optim\.lrr' is not a key of a config\. Did you mean 'optim\.lr'\?"):
        describe("optim.lrr")
