"""The schema for people and for editors: what `config help` and `config schema` print."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from rankrun.config.keys import fields, is_free
from rankrun.config.legal import legal, yaml_word
from rankrun.config.settings import Section, Settings
from rankrun.errors import OptionError, did_you_mean

__all__ = ["describe", "schema"]


def schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors: the settings and `base:`, with nothing required.

    A file that has a base may leave out every key, so an editor must not ask for any.
    """
    made = Settings.model_json_schema()
    made["properties"] = {
        "base": {"type": "string", "description": "another config, relative to this file, that this one changes"},
        **made["properties"],
    }
    for part in (made, *made["$defs"].values()):
        part.pop("required", None)
    return made


def describe(key: str | None = None) -> str:
    """What the dotted `key` or section means, may hold and is by default; without a key all of them, a line each.

    OptionError for a key that there isn't.
    """
    known = fields()
    if key is None:
        lines = []
        for name, info in Settings.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                lines.append(_section(name, info.annotation))
            else:
                lines.append(_line(name, info))
        return "\n".join([*lines, "", "config help KEY says what a key may hold, e.g. config help optim.lr"])
    if key in known:
        return _at_length(key, known[key])
    annotation = Settings.model_fields[key].annotation if key in Settings.model_fields else None
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return _section(key, annotation)
    last = next((name for name in known if name.rpartition(".")[2] == key), None)  # `lr` for optim.lr
    near = f" Did you mean {last!r}?" if last else did_you_mean(key, [*known, *Settings.model_fields])
    raise OptionError(f"{key[:80]!r} is not a key of a config.{near}")


def _section(name: str, section: type[Section]) -> str:
    head = f"{name}: {section.__doc__}"
    return "\n".join([head, *(f"  {_line(f'{name}.{key}', info)}" for key, info in section.model_fields.items())])


def _line(key: str, info: FieldInfo) -> str:
    return f"{key} = {_default(info)}    {info.description}"


def _default(info: FieldInfo) -> str:
    return "(required)" if info.is_required() else yaml_word(info.get_default(call_default_factory=True))


def _at_length(key: str, info: FieldInfo) -> str:
    free = "may change" if is_free(key) else "part of the run's identity; a change needs --allow-change " + key
    return "\n".join((
        f"{key}: {info.description}",
        f"  may hold      {legal(info)}",
        f"  default       {_default(info)}",
        f"  within a run  {free}",
    ))  # fmt: skip
