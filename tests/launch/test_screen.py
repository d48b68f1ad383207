from __future__ import annotations

from rankrun.launch.screen import Screen


def test_rank_0_is_plain_and_others_carry_their_rank(tmp_path, capfdbinary):
    screen = Screen()
    zero, one = tmp_path / "0.log", tmp_path / "1.log"
    screen.show(zero, None)
    screen.show(one, "[1] ")
    zero.write_bytes(b"a\nprogress 50%\r")
    one.write_bytes(b"x\nhalf a li")
    screen.drain()
    with one.open("ab") as file:
        file.write(b"y\n")
    screen.close()
    assert capfdbinary.readouterr().out == b"a\nprogress 50%\r[1] x\n[1] half a li\n[1] y\n"
    assert screen.shows(zero)
    assert not screen.shows(tmp_path / "2.log")


def test_the_log_of_a_new_attempt_takes_the_old_ones_place(tmp_path, capfdbinary):
    screen = Screen()
    old, new = tmp_path / "0.log", tmp_path / "1.log"
    screen.show(old, None)
    old.write_bytes(b"old\n")
    screen.show(new, None)
    new.write_bytes(b"new\n")
    with old.open("ab") as file:
        file.write(b"late\n")
    screen.close()
    assert capfdbinary.readouterr().out == b"old\nnew\n"
    assert not screen.shows(old)
