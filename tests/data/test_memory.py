from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

from data.memory import MemoryFile, write_all


def read_through(file: MemoryFile, answers: multiprocessing.SimpleQueue[bytes]) -> None:
    answers.put(bytes(file.map()))


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_started_process_holds_the_same_file(start: str) -> None:
    context = multiprocessing.get_context(start)
    file = MemoryFile.of(b"before")
    answers = context.SimpleQueue()
    process = context.Process(target=read_through, args=(file, answers))
    write_all(file.fd, b"after!", 0)  # seen there only if nothing was copied when the object was made
    process.start()
    assert answers.get() == b"after!"
    process.join(10)
    assert process.exitcode == 0


def test_the_file_is_shared_and_not_copied() -> None:
    context = multiprocessing.get_context("spawn")
    file = MemoryFile.of(b"x" * 100)
    answers = context.SimpleQueue()
    process = context.Process(target=overwrite, args=(file, answers))
    process.start()
    answers.get()
    process.join(10)
    assert bytes(file.map()) == b"y" * 100


def overwrite(file: MemoryFile, answers: multiprocessing.SimpleQueue[bytes]) -> None:
    write_all(file.fd, b"y" * len(file), 0)
    answers.put(b"done")


def test_pickled_for_anything_else_it_is_a_copy() -> None:
    file = MemoryFile.of(b"rows")
    copy = pickle.loads(pickle.dumps(file))
    write_all(file.fd, b"ROWS", 0)
    assert bytes(copy.map()) == b"rows"


def test_it_has_no_name_and_is_closed_with_its_last_handle() -> None:
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    file = MemoryFile.of(b"rows")
    fd = file.fd
    assert not before or set(os.listdir("/dev/shm")) <= before
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_where_there_is_no_memfd_an_unlinked_file_does() -> None:
    """macOS: the same through a file that has no name by the time anything is in it."""
    code = "import os; del os.memfd_create\nfrom data.memory import MemoryFile as M\nprint(bytes(M.of(b'rows').map()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "b'rows'"
