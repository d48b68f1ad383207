from __future__ import annotations

import errno
import os
import pty
import threading

from rankrun.launch.screen import Screen


def test_rank_0_is_plain_others_carry_their_rank_and_lines_of_ours_come_in_order(tmp_path, capfdbinary):
    zero, one = tmp_path / "0.log", tmp_path / "1.log"
    zero.write_bytes(b"a\nprogress 50%\r")
    one.write_bytes(b"x\n10%\r20%\rhalf a li")
    screen = Screen()
    screen.show(zero, None)
    screen.show(one, "[1] ")
    screen.start()
    screen.say("the verdict")
    screen.close()
    out, err = capfdbinary.readouterr()
    assert out == b"a\nprogress 50%\r[1] x\n[1] 10%\n[1] 20%\n[1] half a li\n"
    assert err == b"rankrun: the verdict\n"
    assert screen.shows(zero)
    assert not screen.shows(tmp_path / "2.log")


def test_the_log_of_a_new_attempt_takes_the_old_ones_place(tmp_path, capfdbinary):
    old, new = tmp_path / "0.log", tmp_path / "1.log"
    old.write_bytes(b"old\n")
    new.write_bytes(b"new\n")
    screen = Screen()
    screen.show(old, None)
    screen.show(new, None)
    screen.start()
    screen.close()
    assert capfdbinary.readouterr().out == b"old\nnew\n"
    assert not screen.shows(old)


def test_a_key_tells_logs_apart_that_carry_the_same_prefix(tmp_path, capfdbinary):
    screen = Screen()
    for key, words in enumerate((b"a\n", b"b\n", b"c\n")):
        (tmp_path / str(key)).write_bytes(words)
        screen.show(tmp_path / str(key), "> ", key=key % 2, to_stderr=key == 1)
    screen.start()
    screen.close()
    out, err = capfdbinary.readouterr()
    assert (out, err) == (b"> a\n> c\n", b"> b\n")
    assert [screen.shows(tmp_path / str(key)) for key in range(3)] == [False, True, True]


def test_a_begun_line_of_the_plain_rank_ends_before_another_ranks(tmp_path, capfdbinary):
    zero, one = tmp_path / "0.log", tmp_path / "1.log"
    zero.write_bytes(b"(Pdb) ")
    one.write_bytes(b"half")
    screen = Screen()
    screen.show(zero, None)
    screen.show(one, "[1] ")
    screen.start()
    screen.say("of ours")  # stdout is no terminal here: no byte is added for it
    screen.close()
    assert capfdbinary.readouterr().out == b"(Pdb) \n[1] half\n"


def test_on_a_terminal_what_we_say_begins_a_line(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setattr("rankrun.launch.screen._STDOUT", theirs)
    monkeypatch.setattr("rankrun.launch.screen._STDERR", theirs)
    log = tmp_path / "0.log"
    log.write_bytes(b"(Pdb) ")
    screen = Screen()
    screen.show(log, None)
    screen.start()
    screen.say("of ours")
    screen.close()
    assert os.read(ours, 1000) == b"(Pdb) \r\nrankrun: of ours\r\n"
    os.close(ours)
    os.close(theirs)


def test_a_line_without_an_end_is_shown_in_pieces(tmp_path, capfdbinary):
    log = tmp_path / "1.log"
    log.write_bytes(b"x" * 200_000)
    screen = Screen()
    screen.show(log, "[1] ")
    screen.start()
    screen.close()
    out = capfdbinary.readouterr().out
    assert out.replace(b"[1] ", b"").replace(b"\n", b"") == b"x" * 200_000


def test_a_terminal_that_nobody_reads_delays_only_the_thread(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("rankrun.launch.screen._STDOUT", writer)
    log = tmp_path / "0.log"
    log.write_bytes(b"x" * 1_000_000)  # more than a pipe holds
    screen = Screen()
    screen.start()
    screen.show(log, None)
    screen.say("not delayed")
    asked = threading.Event()

    def give_up() -> bool:
        asked.set()
        return True

    screen.close(give_up)
    assert asked.is_set()
    os.close(reader)  # lets the thread end
    screen.close()
    os.close(writer)


def test_the_end_waits_for_a_slow_terminal_and_cuts_nothing_off(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("rankrun.launch.screen._STDOUT", writer)
    log = tmp_path / "0.log"
    log.write_bytes(b"x" * 1_000_000)  # more than a pipe holds
    screen, waits, shown = Screen(), threading.Event(), bytearray()

    def read_when_the_end_waits() -> None:
        waits.wait()
        while data := os.read(reader, 1 << 16):
            shown.extend(data)

    def give_up() -> bool:
        waits.set()
        return False

    terminal = threading.Thread(target=read_when_the_end_waits)
    terminal.start()
    screen.show(log, None)
    screen.start()
    screen.close(give_up)
    waits.set()
    os.close(writer)  # as the launcher's own end does
    terminal.join()
    os.close(reader)
    assert len(shown) == 1_000_000


def test_what_is_no_unicode_is_said_all_the_same(capfdbinary):
    screen = Screen()
    screen.start()
    screen.say("bad \udcff name")
    screen.say("and on")
    screen.close()
    assert capfdbinary.readouterr().err == b"rankrun: bad \\udcff name\nrankrun: and on\n"


def test_an_order_that_fails_and_a_disk_that_does_not_answer_are_survived(tmp_path, monkeypatch, capfdbinary):
    class Broken:
        """A file on a server that has gone away for one read."""

        def __init__(self, path) -> None:
            self.file, self.fails = open(path, "rb"), True  # noqa: SIM115  # closed by the screen

        def read(self, size: int) -> bytes:
            self.fails, fails = False, self.fails
            if fails:
                raise OSError(errno.ESTALE, "Stale file handle")
            return self.file.read(size)

        def close(self) -> None:
            self.file.close()

    monkeypatch.setattr("rankrun.launch.screen.open", lambda path, mode: Broken(path), raising=False)
    log = tmp_path / "0.log"
    log.write_bytes(b"a\n")
    screen = Screen()
    orders = iter([[].pop, lambda line: say(line)])  # what the words of the first one say is of no account
    say = screen._say
    monkeypatch.setattr(screen, "_say", lambda line: next(orders)(line))
    screen.show(log, None)
    screen.say("lost")
    screen.say("and on")
    screen.start()
    screen.close()
    out, err = capfdbinary.readouterr()
    assert out == b"a\n"
    assert b"rankrun: the screen misses something: TypeError: " in err
    assert err.endswith(b"\nrankrun: and on\n")
