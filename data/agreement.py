"""One agreement between ranks before training: all see the same data, or all stop with the same words.

The package knows no process group. It is given `gather(obj)`, which returns every rank's obj in the order of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .datasets import ImageRows
from .errors import DataError, DisagreementError, by_code, counted
from .meta import MetaFile

T = TypeVar("T")
Gather = Callable[[Any], list[Any]]


def agree(action: Callable[[], T], *, gather: Gather) -> T:
    """What `action` returns here, once it has succeeded on every rank.

    If it raised a DataError anywhere, every rank raises that of the lowest such rank, with `told_by` naming it.
    """
    error: DataError | None = None
    result: T | None = None
    try:
        result = action()
    except DataError as raised:
        error = raised
    told = gather(None if error is None else (error.code, list(error.args)))
    for rank, report in enumerate(told):
        if report is not None:
            code, problems = report
            common = by_code().get(code, DataError)(*problems)
            common.told_by = rank
            raise common from error
    assert error is None
    return result  # type: ignore[return-value]


def prepare(
    source: MetaFile | ImageRows | Callable[[], MetaFile | ImageRows], *, rank: int, world_size: int, gather: Gather
) -> dict[str, Any]:
    """Checks the data on every rank and returns what must not change over a run, as plain builtins.

    {"version", "n", "fingerprint", "classes", "by_name", "channels", "decoder", "order"}; the last three for a dataset
    only. `by_name`: of the classes only names are labels, see MetaFile.shared_classes.
    Raises the same DataError on all ranks: of what one of them found, or DisagreementError where they differ.
    """

    def look() -> dict[str, Any]:
        found = source() if callable(source) else source
        meta = found if isinstance(found, MetaFile) else found.meta
        meta.check()
        facts: dict[str, Any] = {
            "version": 1,
            "n": meta.n,
            "fingerprint": meta.fingerprint,
            "classes": list(meta.classes),
            "by_name": meta.shared_classes.by_name,
        }
        if not isinstance(found, MetaFile):
            facts |= {"channels": found.channels, "decoder": found.decoder.identity, "order": found.order}
        return facts

    facts = agree(look, gather=gather)
    everyone = gather(facts)
    if len(everyone) != world_size:
        raise DisagreementError(
            f"rank {rank} heard of {counted(len(everyone), 'rank')}, the world size is {world_size}"
        )
    for other, theirs in enumerate(everyone):
        for key in facts:
            if theirs.get(key) != everyone[0].get(key):
                error = DisagreementError(
                    f"ranks see different data: {key} is {_short(everyone[0].get(key))} on rank 0 and "
                    f"{_short(theirs.get(key))} on rank {other}; is the same meta file and environment on every node?"
                )
                error.told_by = 0
                raise error
    return facts


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
