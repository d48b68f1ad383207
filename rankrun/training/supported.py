"""What train.py is not written for yet, refused before anything is trained on it."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from rankrun.errors import OptionError


class _Meta(Protocol):
    multi_label: bool
    kind: str


class _Dataset(Protocol):
    @property
    def meta(self) -> Any: ...


D = TypeVar("D", bound=_Dataset)


def one_label_each(dataset: D) -> D:
    """The dataset, if its rows are images with one label each; else OptionError.

    The data package reads more than that: rows with several labels come multi-hot, frame lists and videos as clips.
    A cross-entropy over classes would take the first for probabilities, and a 2-D network fails on the second.
    """
    meta: _Meta = dataset.meta
    if meta.multi_label:
        raise OptionError(
            "the rows of data.train or data.val have several labels: train.py trains and scores one label per image; "
            "use the data package in a training loop of your own (README, 'The data package alone')"
        )
    if meta.kind != "image":
        raise OptionError(
            f"the rows of data.train or data.val are of kind {meta.kind!r}: train.py trains on single images; use the "
            "data package in a training loop of your own (README, 'The data package alone')"
        )
    return dataset
