"""Node 0's side: it knows who is there, begins attempts, hears of failures first, and decides for all."""

from __future__ import annotations

import contextlib
import errno
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankrun.errors import RunFolderError, SetupError
from rankrun.launch.nodes.messages import Decision, Hello, Meeting, read_report, read_text, read_time
from rankrun.launch.nodes.team import ANSWER_S, Abandoned, Begin, Connected, Judge, Surroundings
from rankrun.launch.nodes.wire import LONGEST_BYTES, Wire, part

_HELLO_LIMIT_S = 10.0
_HELLO_BYTES = 1 << 16
_MOST_STRANGERS = 1024  # connections that have not said hello: an open port on a network meets anything
_SHARE_OF_FILES = 8  # strangers leave all other descriptors to those who work
_MOST_WAITING = 8  # beyond one for each node
_GOODBYE_S = 1.0


@dataclass
class _Member:
    """Another node. Without a wire it is gone, and its place is kept for it."""

    hello: Hello
    wire: Wire | None
    prepared: bool = False
    behind_ns: int | None = None  # this machine's monotonic clock minus the member's, and the quickest way from there
    hang: Any = None
    done: bool | None = None  # its ranks have ended well, and whether one of them had saved
    report: dict[str, Any] | None = None


class Head(Connected):
    """The agents' meeting place, open from before the first node comes until the last one has left."""

    def __init__(
        self,
        listener: socket.socket,
        hello: Hello,
        around: Surroundings,
        *,
        welcome: dict[str, Any],
        tells_address: bool,
    ) -> None:
        """Without `tells_address` every node takes the address at which it reached this one."""
        self._members: dict[int, _Member] = {}
        super().__init__(hello, around)
        self._listener = listener
        self._welcome = welcome
        self._tells_address = tells_address
        self._strangers: list[tuple[Wire, float]] = []
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_strangers = min(_MOST_STRANGERS, files // _SHARE_OF_FILES) if files > 0 else _MOST_STRANGERS
        self._queue: list[tuple[Hello, Wire]] = []  # of a run that is complete; they take the place of one that goes
        self._lost: dict[int, str] = {}  # nodes that went in this attempt
        self._elsewhere = False
        self._running = False
        self._left = False
        self._full = False  # no file descriptor is left for whoever else comes
        listener.setblocking(False)
        around.waiter.watch(listener)

    # Team --------------------------------------------------------------------------------------------------------

    def meet(self, begin: Begin) -> Meeting:
        """Wait for all nodes; then begin an attempt and tell all of them. SetupError names those that did not come."""
        place, limit_s = self._around.place, self._around.join_timeout_s
        deadline = time.monotonic() + limit_s
        said = ""
        self._running = False
        self._admit()
        while not self._complete():
            if self._around.interrupted():
                raise Abandoned
            missing = [str(node) for node in range(1, self.nnodes) if not self._is_here(node)]
            if time.monotonic() > deadline:
                raise SetupError(
                    f"{len(missing)} of {self.nnodes} nodes did not come to {place} within {limit_s:g} s: "
                    f"node {', '.join(missing[:20])}{' …' if len(missing) > 20 else ''}"
                )
            line = f"waiting at {place} for node {', '.join(missing[:20])} of {self.nnodes} nodes"
            if missing and line != said:
                self._around.say(f"{line}, up to {limit_s:g} s")
                said = line
            self._around.wait(1.0)
            self._look()
        attempt, address, port = begin()
        others = [self._members[node].hello for node in range(1, self.nnodes)]
        meeting = Meeting(
            node=0,
            nprocs=(self.nproc, *(hello.nproc for hello in others)),
            hosts=(self.host, *(hello.host for hello in others)),
            attempt=attempt,
            restart=self.restarts,
            address=address,
            port=port,
        )
        self._lost, self._elsewhere, self._running = {}, False, True
        for member in self._members.values():
            member.hang, member.done, member.report = None, None, None
            self._send(member, meeting.as_message(tells_address=self._tells_address))
        return meeting

    def failed(self) -> bool:
        """Whether another node has failed or is gone."""
        self._look()
        return self._elsewhere or bool(self._lost)

    def announce(self, *, hangs: bool = False) -> None:
        """Tell all nodes to stop, first to leave their stacks where all hang."""
        for member in self._members.values():
            self._send(member, {"stop": True, "stacks": hangs})

    def tell(self, number: signal.Signals) -> None:
        """Pass a signal on to all nodes."""
        for member in self._members.values():
            self._send(member, {"notice": number.name})

    def all_hang(self, own: dict[str, Any] | None, *, runs: bool) -> dict[int, Any] | None:
        """The hangs of all nodes, once every node whose ranks still run has one."""
        said = {node: member.hang for node, member in self._members.items() if member.done is None}
        if runs:
            said[0] = own
        return said if said and all(hang is not None for hang in said.values()) else None

    def conclude(self, report: dict[str, Any], judge: Judge) -> Decision:
        """Hear how every node ended, judge, and tell all."""
        self.announce()
        deadline = time.monotonic() + self._around.stop_grace_s + ANSWER_S
        self._look()
        while self._silent() and time.monotonic() < deadline:
            self._around.wait(0.5)
            self._look()
        lost = dict(self._lost)
        silent = {node: self._members[node].hello.host for node in self._silent()}
        for node in silent:
            self._lose(node)
        reports = {node: member.report for node, member in self._members.items() if member.report is not None}
        decision = judge({0: report, **reports}, lost, silent)
        self.restarts += decision.restart
        self._running = False
        for member in self._members.values():
            self._send(member, decision.as_message())
        return decision

    def finish(self, saved: bool, code_of: Callable[[bool], int]) -> int | None:
        """The exit code once every node's ranks have ended well."""
        if any(member.done is None for member in self._members.values()):
            return None
        code = code_of(saved or any(member.done for member in self._members.values()))
        self.leave(code)
        return code

    def leave(self, code: int) -> None:
        """Send everybody away with `code`, and close the meeting place."""
        if self._left:
            return
        self._left = True
        super().leave(code)
        goodbye = Decision(restart=False, exit_code=code).as_message()
        wires = [*self._wires(), *(wire for wire, _ in self._strangers)]
        for wire in wires:
            wire.send(goodbye)
            self._around.waiter.forget(wire)
        self._around.waiter.forget(self._listener)
        self._listener.close()
        part(wires, _GOODBYE_S)

    # who is there ------------------------------------------------------------------------------------------------

    def _wires(self) -> list[Wire]:
        members = [member.wire for member in list(self._members.values()) if member.wire is not None]
        return [*members, *(wire for _, wire in list(self._queue))]

    def _is_here(self, node: int) -> bool:
        return node in self._members and self._members[node].wire is not None

    def _complete(self) -> bool:
        return all(self._is_here(node) and self._members[node].prepared for node in range(1, self.nnodes))

    def _silent(self) -> list[int]:
        """Nodes that are there and have not said how they ended."""
        return [n for n, member in self._members.items() if member.wire is not None and member.report is None]

    def _look(self) -> None:
        """Hear whatever has come, without waiting."""
        self._awake()
        self._accept()
        self._hear_strangers()
        for node, member in list(self._members.items()):
            if member.wire is None:
                continue
            for message in member.wire.receive():
                self._obey(member, message)
            if self._gone(member.wire):
                self._lose(node)
        for hello, wire in list(self._queue):
            wire.receive()
            if self._gone(wire):
                self._queue.remove((hello, wire))
                self._drop(wire)

    def _accept(self) -> None:
        """Take in who has come. Out of descriptors, the oldest stranger goes, or the next look tries again."""
        if self._full:
            self._around.waiter.watch(self._listener)
            self._full = False
        coming = select.poll()  # without a descriptor accept fails also where nobody waits
        coming.register(self._listener, select.POLLIN)
        for _ in range(_MOST_STRANGERS):
            if not coming.poll(0):
                return
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    return  # it was gone before it was taken in
                if not self._strangers:
                    self._around.waiter.forget(self._listener)  # it would wake this agent without a pause
                    self._full = True
                    return
                self._drop(self._strangers.pop(0)[0])
            else:
                self._receive_stranger(connection)

    def _receive_stranger(self, connection: socket.socket) -> None:
        if len(self._strangers) >= self._most_strangers:
            connection.close()
            return
        try:
            wire = Wire(connection, _HELLO_BYTES)
        except OSError:  # gone again
            connection.close()
            return
        self._around.waiter.watch(wire)
        self._strangers.append((wire, time.monotonic() + _HELLO_LIMIT_S))

    def _hear_strangers(self) -> None:
        for wire, deadline in list(self._strangers):
            messages = wire.receive()
            if not messages and not wire.closed and time.monotonic() < deadline:
                continue
            self._strangers.remove((wire, deadline))
            hello = Hello.read(messages[0].get("hello")) if messages else "that is no hello"
            if isinstance(hello, Hello):
                why = self._why_not(hello)
                if why is None:
                    self._queue.append((hello, wire))
                    self._admit()
                    if (hello, wire) in self._queue:
                        wire.send({"wait": self._why_wait(hello)})
                    continue
            else:
                why = hello
            wire.send({"refused": why})
            self._drop(wire)

    def _why_not(self, hello: Hello) -> str | None:
        """Why a node can't belong to this launch."""
        mine = self._hello
        if hello.run != mine.run:
            return f"node 0 runs {mine.run!r} here, not {hello.run!r} (--rdzv-id)"
        if hello.nnodes != mine.nnodes:
            return f"node 0 was started with --nnodes {mine.nnodes}, this one with --nnodes {hello.nnodes}"
        if hello.program != mine.program:
            return f"node 0 runs {mine.program}, this one {hello.program}"
        if hello.torch != mine.torch:
            return f"node 0 has torch {mine.torch}, this one {hello.torch}; install the same on all nodes"
        if hello.node is not None and hello.node >= mine.nnodes:
            return f"--node-rank {hello.node} with --nnodes {mine.nnodes}: node ranks are counted from 0"
        if hello.node == 0:
            return f"node rank 0 is taken by {mine.host}"
        other = self._members.get(hello.node) if hello.node is not None else None
        if not self._running and other is not None and other.wire is not None:
            return f"node rank {hello.node} is taken by {other.hello.host}"
        if len(self._queue) >= self.nnodes + _MOST_WAITING:
            return f"{len(self._queue)} nodes wait here already, for a run of {self.nnodes}"
        return None

    def _why_wait(self, hello: Hello) -> str:
        """What a node that belongs to this launch waits for."""
        if hello.node is not None and self._is_here(hello.node):
            return f"node rank {hello.node} is taken by {self._members[hello.node].hello.host}; waiting for the place"
        if all(self._is_here(node) for node in range(1, self.nnodes)):
            return f"all {self.nnodes} nodes are there; waiting for a place"
        return "an attempt is running; waiting for the next one"

    def _admit(self) -> None:
        """Give places that are free to those who wait, in the order in which they came."""
        if self._running:
            return
        for hello, wire in list(self._queue):
            free = [node for node in range(1, self.nnodes) if not self._is_here(node)]
            if hello.node is not None:
                free = [node for node in free if node == hello.node]
            else:  # a node that comes back gets the place that it had
                free.sort(key=lambda node: node not in self._members or self._members[node].hello.host != hello.host)
            if free:
                self._queue.remove((hello, wire))
                member = self._members[free[0]] = _Member(hello, wire)
                wire.longest_bytes = LONGEST_BYTES
                self.here = wire.here
                self._send(member, {"welcome": {**self._welcome, "node": free[0]}})

    def _lose(self, node: int) -> None:
        member = self._members[node]
        if member.wire is not None:
            self._drop(member.wire)
            member.wire = None
        if self._running and member.report is None:
            self._lost[node] = member.hello.host
        elif not self._running:
            self._around.say(f"node {node} ({member.hello.host}) has gone")
        member.prepared = False

    def _drop(self, wire: Wire) -> None:
        self._around.waiter.forget(wire)
        wire.close()

    def _send(self, member: _Member, message: dict[str, Any]) -> None:
        if member.wire is not None:
            member.wire.send(message)

    def _obey(self, member: _Member, message: dict[str, Any]) -> None:
        now = time.monotonic_ns()
        said = read_time(message.get("now_ns"))
        if said is not None:
            behind = now - said
            member.behind_ns = behind if member.behind_ns is None else min(behind, member.behind_ns)
        if "prepared" in message and not self._running:
            if message["prepared"] is not True:
                raise RunFolderError(read_text(str(message["prepared"])))
            member.prepared = True
        elif "failed" in message:
            self._elsewhere |= self._running
        elif "hang" in message:
            member.hang = message["hang"]
        elif "done" in message:
            member.done = bool(message["done"])
        elif "report" in message:
            # What was read late, because this agent was busy with its own ranks, is placed where it was sent.
            sent = said + member.behind_ns if member.behind_ns is not None and said is not None else now
            report = read_report(message["report"], min(sent, now))
            if self._running and report is not None:
                member.report, self._elsewhere = report, True
        elif "notice" in message and (number := self._hear(message["notice"])) is not None:
            for other in self._members.values():
                if other is not member:
                    self._send(other, {"notice": number.name})


def send_away(listener: socket.socket, members: int, code: int, line: str, limit_s: float) -> None:
    """For a node 0 that has nothing to begin: tell those who come within `limit_s` what all leave with."""
    goodbye = Decision(restart=False, exit_code=code, line=line).as_message()
    deadline = time.monotonic() + limit_s
    told: list[Wire] = []
    with contextlib.suppress(OSError):  # out of time
        while len(told) < members:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            told.append(wire := Wire(listener.accept()[0]))
            wire.send(goodbye)
    part(told, deadline - time.monotonic())
    listener.close()
