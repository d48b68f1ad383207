"""Whether nodes reach each other over TCP, at the addresses that gloo would use; told node by node."""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_SIOCGIFADDR = 0x8915
_AT_ONCE = 32
_LIMIT_S = 5.0  # a firewall that drops says nothing; an answer in a cluster takes milliseconds


def gloo_address(interface: str | None) -> str:
    """The address at which this node's ranks would wait for those of others, as text.

    It is that of `interface` (GLOO_SOCKET_IFNAME, of which the first counts), else what the host's own name leads to.
    OSError with what is wrong in words.
    """
    if interface:
        name = interface.split(",")[0]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError as error:
                raise OSError(f"GLOO_SOCKET_IFNAME={name}: {error.strerror}") from error
        return socket.inet_ntoa(answer[20:24])
    host = socket.gethostname()
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise OSError(
            f"its host name {host} leads to no address ({error.strerror}); add it to /etc/hosts, or set "
            "GLOO_SOCKET_IFNAME"
        ) from error


@contextmanager
def answering(address: str, word: str) -> Iterator[int]:
    """A port of `address` that answers everyone who connects with `word`, for as long as the block lasts."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"its host name leads to {address}, at which it can't listen ({error.strerror})") from error
    thread = threading.Thread(target=_answer, args=(listener, word.encode()), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; closing alone does not
        listener.close()
        thread.join()


def _answer(listener: socket.socket, word: bytes) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            try:
                peer.settimeout(_LIMIT_S)
                peer.sendall(word)
            except OSError:
                continue


def unreachable(places: Mapping[int, Any], limit_s: float = _LIMIT_S) -> dict[int, str]:
    """Why each node at one of `places` (by node: address, port, word) can't be reached; those that can are left out.

    A node counts as reached only if it says its own word: behind 127.0.1.1, say, stands whoever asks.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        reasons = pool.map(lambda place: _try(place[0], place[1], place[2], limit_s), places.values())
        return {node: reason for node, reason in zip(places, reasons, strict=True) if reason is not None}


def _try(address: str, port: int, word: str, limit_s: float) -> str | None:
    try:
        with socket.create_connection((address, port), timeout=limit_s) as peer:
            heard = peer.recv(len(word.encode()))
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None if heard == word.encode() else "somebody else answers"
