from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.meta import MetaFile
from data.verbs import looking
from data.verbs.looking import KINDS, Look, Piece, pieces

Write = Callable[..., Path]


def test_pieces_are_all_rows_in_order(write: Write) -> None:
    lines = [f"{row}.png {row % 3}" for row in range(25)]
    one, two = write("\r\n".join(lines[:10]), "a.txt"), write("\n".join(lines[10:]) + "\n\n", "b.txt")
    found = list(pieces(MetaFile([one, two]), 4))
    # no piece is of two files, which may have different roots
    assert [piece.first for piece in found] == [0, 4, 8, 10, 14, 18, 22]
    text = [piece.text[a:b].decode() for piece in found for a, b in zip(piece.starts, piece.stops, strict=True)]
    assert text == lines


def test_rows_that_are_left_out_are_in_no_piece(write: Write) -> None:
    meta = MetaFile(write("0.png 0\n1.png 0\n2.png 0\n"), exclude=write("1\n", "out.txt"))
    (piece,) = pieces(meta, 10)
    assert [piece.text[a:b] for a, b in zip(piece.starts, piece.stops, strict=True)] == [b"0.png 0", b"2.png 0"]


@pytest.mark.parametrize("again", [False, True])
def test_a_look_travels_to_other_processes(write: Write, again: bool) -> None:
    write("x", "0.png")
    look = Look(MetaFile(write("0.png 0\nnone.png 1\n./0.png 0\nx\n", "m.txt"), classes=2))
    piece = next(pieces(look.meta, 10))
    if again:
        look(piece)
    seen = pickle.loads(pickle.dumps(look))(piece)
    assert [KINDS[kind] for kind in seen.kinds] == ["good", "missing", "good", "malformed"]
    keys = np.frombuffer(seen.keys, np.uint64).tolist()
    assert keys[0] == keys[2] != keys[1]
    assert keys[3] == 0
    assert np.frombuffer(seen.labels, np.int64).tolist() == [0, 1, 0, 0]
    assert seen.counts == {0: 2, 1: 1}
    assert [row for row, _ in seen.problems] == [1, 3]
    assert len(pickle.dumps(look)) < 10_000


def test_lines_alone_touch_no_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("a file was looked at")

    look = Look(MetaFile(write("none.png 0\n")), files=False)
    monkeypatch.setattr(looking.os, "lstat", touched)
    assert look(next(pieces(look.meta, 10))).kinds == b"\0"


def test_only_what_may_be_shown_is_put_in_words(write: Write) -> None:
    look = Look(MetaFile(write("none.png 0\n" * 100)))
    seen = look(next(pieces(look.meta, 100)))
    assert seen.kinds == bytes([looking.MISSING]) * 100
    assert len(seen.problems) == 20


def test_names_that_no_file_can_have(write: Write) -> None:
    long = "x" * 300
    look = Look(MetaFile(write(f"{long}.png 0\na//b.png 0\n")))
    seen = look(next(pieces(look.meta, 10)))
    assert [str(error).rpartition(": ")[2] for _, error in seen.problems] == [
        "File name too long",
        "No such file or directory",
    ]
    assert isinstance(next(pieces(look.meta, 10)), Piece)
