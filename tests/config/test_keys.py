from __future__ import annotations

from collections.abc import Callable

from rankrun.config import Settings, changed, differences_from_defaults, identity, is_free
from rankrun.config.keys import fields, flat

SettingsOf = Callable[..., Settings]

FREE = {
    "data.read", "data.workers", "data.worker_start", "data.audit", "train.micro_batch",
    "train.log_every_steps", "checkpoint.every_steps", "checkpoint.keep", "eval.every_epochs", "launch.nproc",
    "launch.max_restarts", "launch.grace_s", "launch.hang_timeout_s",
}  # fmt: skip


def test_the_identity_is_every_key_that_is_not_free(settings_of: SettingsOf) -> None:
    assert {key for key in fields() if is_free(key)} == FREE
    assert set(identity(settings_of())) == set(fields()) - FREE
    assert identity(settings_of())["train.epochs"] == 2
    assert not is_free("no.key")


def test_changed_names_the_keys_in_the_schemas_order(settings_of: SettingsOf) -> None:
    old, new = settings_of(), settings_of("optim.lr=0.2", "seed=1", "data.workers=0")
    assert changed(old, new) == ["seed", "data.workers", "optim.lr"]
    assert changed(old, settings_of()) == []


def test_arguments_of_other_types_differ(settings_of: SettingsOf) -> None:
    one = settings_of("model.args={a: 1, b: 2}")
    assert changed(one, settings_of("model.args={b: 2, a: 1}")) == []
    assert changed(one, settings_of("model.args={a: 1.0, b: 2}")) == ["model.args"]
    assert changed(one, settings_of("model.args={a: true, b: 2}")) == ["model.args"]


def test_differences_are_what_is_not_a_default(settings_of: SettingsOf) -> None:
    assert differences_from_defaults(settings_of("optim.lr=0.2", "data.mode=rank")) == {
        "data.train": "t.txt", "train.epochs": 2, "train.global_batch": 8, "optim.lr": 0.2,
    }  # fmt: skip


def test_flat_holds_builtins_only(settings_of: SettingsOf) -> None:
    assert {type(value) for value in flat(settings_of()).values()} <= {int, float, str, bool, list, dict, type(None)}
