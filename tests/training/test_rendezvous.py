from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from rankrun.errors import SetupError
from rankrun.training.rendezvous import published_store
from rankrun.world import World


def world(rank: int) -> World:
    return World(rank, 2, rank, 2, 0, 1, "srun", job="9.0.0")


def join(folder: Path, limit_s: float = 0.3) -> str:
    with published_store(world(1), folder, limit_s) as store:
        return store.get("greeting").decode()


def test_rank_0_publishes_and_takes_away(tmp_path: Path) -> None:
    with published_store(world(0), tmp_path / "new", 5.0) as store:
        store.set("greeting", "hello")
        assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["9.0.0.json"]
        assert join(tmp_path / "new", 30.0) == "hello"
    assert list((tmp_path / "new").iterdir()) == []


def test_nobody_publishes(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"rank 1 did not find rank 0.*9.0.0.json, and no such file has appeared"):
        join(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "127.0.0.1"}', '{"host": "a", "port": "x", "token": 1}'])
def test_a_file_that_is_no_such_file_is_waited_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "9.0.0.json").write_text(content)
    with pytest.raises(SetupError, match="no such file has appeared"):
        join(tmp_path)


def test_another_runs_store_is_not_joined(tmp_path: Path) -> None:
    with published_store(world(0), tmp_path, 5.0):
        path = tmp_path / "9.0.0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "of an earlier run"}))
        with pytest.raises(SetupError, match="where this run's rank 0 does not answer"):
            join(tmp_path)


def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    (tmp_path / "9.0.0.json").write_text(json.dumps({"host": "127.0.0.1", "port": port, "token": "t"}))
    with pytest.raises(SetupError, match=f"it leads to 127.0.0.1:{port}, where this run's rank 0 does not answer"):
        join(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SetupError, match="rank 0 can't publish its store in"),
        published_store(world(0), tmp_path / "file", 5.0),
    ):
        pass
