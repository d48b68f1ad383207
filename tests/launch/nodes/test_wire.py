"""One end of a connection, whatever the other one does."""

from __future__ import annotations

import socket
import threading
from multiprocessing.connection import wait

import pytest

from rankrun.launch.channel import Channel
from rankrun.launch.nodes import wire as wires
from rankrun.launch.nodes.wire import Wire, part


@pytest.fixture
def ends():
    """A wire and the plain socket at its other end, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        wire = Wire(listener.accept()[0], 1 << 16)
    theirs.settimeout(20)
    yield wire, theirs
    wire.close()
    theirs.close()


def readable(end):
    assert wait([end], 20)


def everything(end):
    """All that comes until the end, which must not be a reset."""
    return b"".join(iter(lambda: end.recv(65536), b""))


def test_nothing_but_lines_of_json_is_survived(ends):
    wire, theirs = ends
    theirs.sendall(b'{"a": 1}\n{"b"')
    readable(wire)
    assert wire.receive() == [{"a": 1}]
    theirs.sendall(b": 2}\nnonsense\n")
    readable(wire)
    assert (wire.receive(), wire.closed) == ([], True)


def test_who_writes_without_a_pause_is_heard_a_mib_at_a_time():
    class Endless:
        asked = 0

        def recv(self, size, flags):
            self.asked += 1
            if self.asked > 100:
                raise BlockingIOError
            return b"x" * size

    endless = Endless()
    channel = Channel(endless)
    assert channel.receive() == []
    assert endless.asked == 16
    assert not channel.closed


def test_a_line_in_many_pieces_is_one_message():
    ours, theirs = Channel.pair()
    sender = threading.Thread(target=theirs.send, args=({"words": "x" * (3 << 20)},))
    sender.start()
    heard = []
    while not heard:
        readable(ours)
        heard = ours.receive()
    sender.join()
    assert heard == [{"words": "x" * (3 << 20)}]
    ours.close()
    theirs.close()


def test_a_line_that_never_ends_ends_the_wire(ends):
    wire, theirs = ends
    theirs.sendall(b"x" * (200 << 10))
    while not wire.closed:
        readable(wire)
        assert wire.receive() == []
    assert len(wire._pending) <= 2 << 16


def test_a_peer_that_takes_nothing_holds_nobody_up(ends, monkeypatch):
    monkeypatch.setattr(wires, "_SEND_LIMIT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        wire = Wire(listener.accept()[0])
    sender = threading.Thread(target=wire.send, args=({"words": "x" * (32 << 20)},), daemon=True)
    sender.start()
    sender.join(20)
    stuck = sender.is_alive()
    wire.receive()
    theirs.close()
    assert (stuck, wire.closed) == (False, True)
    wire.close()


def test_a_send_that_fails_leaves_the_last_words_to_be_read(ends):
    wire, theirs = ends
    wire.send({"beat": 1})  # what a peer leaves unread makes its end a reset
    readable(theirs)
    theirs.sendall(b'{"decision": 0}\n')
    theirs.close()
    while not wire._send_failed:
        wire.send({"beat": 1})
    assert (wire.receive(), wire.closed) == ([{"decision": 0}], True)


def test_last_words_arrive_though_something_lay_unread(ends):
    wire, theirs = ends
    theirs.sendall(b'{"beat": 1}\n')
    readable(wire)
    wire.send({"decision": 0})
    wire.close()
    assert everything(theirs) == b'{"decision": 0}\n'


def test_parting_waits_for_the_peer_but_not_for_ever(ends):
    wire, theirs = ends
    wire.send({"decision": 0})
    parting = threading.Thread(target=part, args=([wire], 20.0))
    parting.start()
    assert everything(theirs) == b'{"decision": 0}\n'
    theirs.sendall(b'{"beat": 1}\n')
    theirs.close()
    parting.join(10)
    assert not parting.is_alive()
    assert wire.closed


def test_a_peer_that_stays_is_left(ends):
    wire, _ = ends
    part([wire], 0.05)
    assert wire.closed
