from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankrun.config import Settings, dump, load_frozen, resolve, resolve_with_origins
from rankrun.errors import ConfigError
from tests.config.conftest import LEAST

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["digits.yaml", "fashion_mnist.yaml"])  # a user's own may lie beside them
def test_our_configs_resolve_and_come_back_from_their_dump(name: str, tmp_path: Path) -> None:
    settings = resolve(CONFIGS / name)
    (tmp_path / "config.yaml").write_text(dump(settings))
    assert load_frozen(tmp_path / "config.yaml") == settings
    assert (CONFIGS / name).read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def test_the_least_config_has_the_defaults(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of()
    assert (settings.seed, settings.data.mode, settings.optim.betas) == (0, "rank", [0.9, 0.999])
    assert (settings.train.micro_batch, settings.checkpoint.keep, settings.launch.grace_s) == (None, 2, 30.0)


def test_a_whole_number_serves_as_a_number(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of("optim.lr=1", "schedule.warmup_epochs=0")
    assert (settings.optim.lr, type(settings.optim.lr)) == (1.0, float)


def test_columns_hold_what_was_given_and_no_more(write: Callable[..., Path]) -> None:
    settings = resolve(
        write(LEAST), ["data.columns.path=file", "data.columns.label=2", "data.exclude=[$A, b]"], env={"A": "a"}
    )
    assert settings.data.model_dump(include={"columns", "exclude"}) == {
        "columns": {"path": "file", "label": 2},
        "exclude": ["a", "b"],
    }
    assert load_frozen(write(dump(settings), "frozen.yaml")) == settings


def test_settings_do_not_change(settings_of: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings_of().train.epochs = 3


def test_origins_say_where_each_value_came_from(write: Callable[..., Path]) -> None:
    write("data: {train: t.txt}\n\noptim:\n  lr: 0.5\n  name: sgd\n", "b.yaml")
    write("base: b.yaml\ntrain: {epochs: 2, global_batch: 8}\noptim:\n  lr: 0.1\n")
    origins = resolve_with_origins("c.yaml", ["train.epochs=3", "model.name=x"]).origins
    assert origins["train.epochs"] == "argument 'train.epochs=3'"
    assert origins["train.global_batch"] == "c.yaml:2"
    assert origins["optim.lr"] == "c.yaml:4"
    assert origins["optim.name"] == "b.yaml:5"
    assert origins["model.init"] == "default"
    assert origins["model.name"] == "argument 'model.name=x'"


def test_a_dump_says_everything_and_takes_nothing_from_elsewhere(write: Callable[..., Path]) -> None:
    text = dump(resolve(write(LEAST), ["data.val=$D/v.txt"], env={"D": "$E"}))
    assert set(yaml.safe_load(text)) == set(Settings.model_fields)
    # A dollar that came out of a variable is not looked at again.
    assert load_frozen(write(text, "frozen.yaml")).data.val == "$E/v.txt"
    with pytest.raises(ConfigError, match=r"frozen\.yaml:1  base: is not a key of a config"):
        load_frozen(write("base: c.yaml\n" + text, "frozen.yaml"))
    with pytest.raises(ConfigError, match=r"gone\.yaml  no such file"):
        load_frozen("gone.yaml")


TEXTS = st.text(alphabet="ab01.:-+eExo_~[]{},'\"&*!|>#?%@` \\$=é日", min_size=1, max_size=12) | st.sampled_from(
    ["1e-3", "0o17", "0123", "24:00:00", "no", "~", "null", "True", "0x1F", "1.", "=", "<<", "- a", "a: b", "\xa0",
     ".inf",     "2026-01-01", "9" * 30, "-", "---", "...", "é", "\u3000"]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False)
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(args=st.dictionaries(TEXTS, ANYTHING, max_size=3), paths=st.lists(TEXTS, min_size=1, max_size=3))
def test_whatever_a_config_may_hold_comes_back_bit_by_bit(
    tmp_path: Path, args: dict[str, Any], paths: list[str]
) -> None:
    before = Settings.model_validate({
        "data": {"train": paths}, "model": {"args": args}, "train": {"epochs": 1, "global_batch": 1},
    })  # fmt: skip
    (tmp_path / "config.yaml").write_text(dump(before), encoding="utf-8")
    after = load_frozen(tmp_path / "config.yaml")
    assert repr(after) == repr(before)


def test_same_values_in_two_places_are_dumped_without_aliases(write: Callable[..., Path]) -> None:
    text = LEAST + "model: {args: {a: &x [1, 2], b: *x}}\n"
    dumped = dump(resolve(write(text)))
    assert "*" not in dumped
    assert load_frozen(write(dumped, "frozen.yaml")).model.args == {"a": [1, 2], "b": [1, 2]}
