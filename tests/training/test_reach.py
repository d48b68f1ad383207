from __future__ import annotations

import socket

import pytest

from rankrun.training.reach import answering, gloo_address, unreachable


def test_who_answers_with_its_own_word_is_reached():
    with answering("127.0.0.1", "word") as port, answering("127.0.0.1", "other") as another:
        places = {1: ["127.0.0.1", port, "word"], 2: ["127.0.0.1", another, "word"], 3: ["127.0.0.1", port, "word"]}
        assert unreachable(places) == {2: "somebody else answers"}
    assert unreachable({1: ["127.0.0.1", port, "word"]}) == {1: "connection refused"}
    assert unreachable({}) == {}


def test_one_that_accepts_and_says_nothing_is_not_reached():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = ["127.0.0.1", silent.getsockname()[1], "word"]
        assert unreachable({7: place}, limit_s=0.05) == {7: "no answer"}


def test_an_address_that_is_not_here():
    with pytest.raises(OSError, match=r"leads to 192\.0\.2\.1, at which it can't listen \(Cannot assign"):
        answering("192.0.2.1", "word").__enter__()


def test_the_interface_asked_for_comes_first(monkeypatch):
    assert gloo_address("lo") == gloo_address("lo,eth7") == "127.0.0.1"
    with pytest.raises(OSError, match="GLOO_SOCKET_IFNAME=no-such-if: No such device"):
        gloo_address("no-such-if")
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert gloo_address(None) in ("127.0.0.1", "::1")
    monkeypatch.setattr(socket, "gethostname", lambda: "no.such.host.invalid")
    with pytest.raises(
        OSError, match=r"its host name no\.such\.host\.invalid leads to no address .*GLOO_SOCKET_IFNAME"
    ):
        gloo_address("")
