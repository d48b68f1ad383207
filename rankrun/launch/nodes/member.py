"""The side of every node but 0: it finds node 0, does what is agreed there, and comes back when it loses it."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from rankrun.errors import OptionError, SetupError
from rankrun.launch.nodes.messages import Decision, Hello, Meeting, Welcome, read_text
from rankrun.launch.nodes.team import ANSWER_S, Abandoned, Begin, Connected, Judge, Refused, Surroundings
from rankrun.launch.nodes.wire import Wire

_TRY_LIMIT_S = 2.0
_TRY_AGAIN_S = 0.5


class Dismissed(Exception):
    """Node 0 sends this node away: the run is over, or never began. `code` is what all leave with."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


class Member(Connected):
    """A node that is not 0. Its node rank is known from the first meeting on."""

    def __init__(
        self,
        hello: Hello,
        around: Surroundings,
        *,
        reach: Callable[[float], socket.socket],
        prepare: Callable[[dict[str, Any]], str | None],
    ) -> None:
        """`reach` connects to node 0 or raises OSError; `prepare` gets its welcome and says what is wrong with it."""
        self._wire: Wire | None = None
        super().__init__(hello, around)
        self.node = -1
        self._reach = reach
        self._prepare = prepare
        self._start: Meeting | None = None
        self._decision: Decision | None = None
        self._stop = False
        self._stacks = False
        self._told_done = False
        self._told_hang = False
        self._welcomed = False  # by the node 0 that the wire leads to
        self._head = ""  # node 0's host
        self._why = ""  # the last try failed
        self._awaited = ""  # what node 0 has this node wait for

    # Team --------------------------------------------------------------------------------------------------------

    def meet(self, begin: Begin) -> Meeting:
        """Find node 0 and wait until it begins an attempt. SetupError when it is not found or does not begin."""
        place, limit_s = self._around.place, self._around.join_timeout_s
        deadline = time.monotonic() + limit_s
        self._decision, self._stop, self._stacks = None, False, False
        self._told_done = self._told_hang = False
        said = False
        while self._start is None:
            if self._around.interrupted():
                raise Abandoned
            if not self._welcomed and time.monotonic() > deadline:
                if self._awaited:
                    raise SetupError(
                        f"node 0 at {place} had no place for this node within {limit_s:g} s: {self._awaited}"
                    )
                raise SetupError(
                    f"node 0 did not answer at {place} within {limit_s:g} s ({self._why}); is it "
                    "started there, and may this node reach that port?"
                )
            if self._wire is None:
                self._find()
                if self._wire is None and not said:
                    self._around.say(f"waiting for node 0 at {place}, up to {limit_s:g} s")
                    said = True
            else:
                self._around.wait(1.0)
            self._look()
            if self._decision is not None:
                raise Dismissed(self._decision.exit_code, self._decision.line)
        meeting, self._start = self._start, None
        self.restarts = meeting.restart
        return meeting

    def failed(self) -> bool:
        """Whether node 0 has said stop, or is gone."""
        self._look()
        return self._stop or self._wire is None or (self._decision is not None and self._decision.exit_code != 0)

    @property
    def wants_stacks(self) -> bool:
        """Whether the stacks of this node's ranks are wanted before they stop."""
        return self._stacks

    def announce(self, *, hangs: bool = False) -> None:
        """Tell node 0, which tells all others. A hang is node 0's alone to announce."""
        self._send({"failed": True})

    def tell(self, number: signal.Signals) -> None:
        """Pass a signal on to all others, by way of node 0."""
        self._send({"notice": number.name})

    def all_hang(self, own: dict[str, Any] | None, *, runs: bool) -> dict[int, Any] | None:
        """None always: node 0 is told, and says stop when all nodes hang."""
        if own is not None or self._told_hang:
            self._send({"hang": own})
            self._told_hang = own is not None
        return None

    def conclude(self, report: dict[str, Any], judge: Judge) -> Decision:
        """What node 0 decides; where it is gone, what `judge` makes of this node's own report."""
        self._send({"report": report, "now_ns": report.get("now_ns")})
        # Node 0 waits for the slowest of us, and judges after that.
        deadline = time.monotonic() + self._around.stop_grace_s + 2 * ANSWER_S
        self._look()
        while self._decision is None and self._wire is not None and time.monotonic() < deadline:
            self._around.wait(0.5)
            self._look()
        if self._decision is not None:
            return self._decision
        self._lose()
        decision = judge({self.node: report}, {0: self._head or self._around.place}, {})
        self.restarts += decision.restart
        return replace(decision, line="")  # it has been said

    def finish(self, saved: bool, code_of: Callable[[bool], int]) -> int | None:
        """What node 0 says once all nodes have ended well."""
        if not self._told_done:
            self._told_done = True
            self._send({"done": saved})
        self._look()
        return self._decision.exit_code if self._decision is not None else None

    def leave(self, code: int) -> None:
        """Close the connection, which tells node 0."""
        super().leave(code)
        self._lose()

    # the way to node 0 -------------------------------------------------------------------------------------------

    def _wires(self) -> list[Wire]:
        wire = self._wire
        return [wire] if wire is not None else []

    def _find(self) -> None:
        self._welcomed, self._awaited = False, ""
        try:
            wire = Wire(self._reach(_TRY_LIMIT_S))
        except OSError as error:
            self._why = str(error)
            self._around.wait(_TRY_AGAIN_S)
            return
        self._why = "what answers there is no agent of rankrun"
        self.here = wire.here
        self._wire = wire
        self._around.waiter.watch(wire)
        wire.send(self._hello.as_message())

    def _look(self) -> None:
        self._awake()
        wire = self._wire
        if wire is None:
            return
        for message in wire.receive():
            if self._wire is wire:
                self._obey(wire, message)
        if self._gone(wire):
            self._lose()

    def _lose(self) -> None:
        wire, self._wire, self._start = self._wire, None, None
        if wire is not None:
            self._around.waiter.forget(wire)
            wire.close()

    def _send(self, message: dict[str, Any]) -> None:
        if self._wire is not None:
            self._wire.send(message)

    def _obey(self, wire: Wire, message: dict[str, Any]) -> None:
        try:
            if "welcome" in message:
                welcome = Welcome.read(message["welcome"], self.nnodes)
                problem = self._prepare(asdict(welcome))
                self.node, self._head, self.run_name = welcome.node, welcome.host, welcome.run
                self._welcomed = True
                self._send({"prepared": problem or True, "now_ns": time.monotonic_ns()})
            elif "refused" in message:
                raise Refused(read_text(message["refused"]))
            elif "wait" in message:
                self._awaited = read_text(message["wait"])
                self._around.say(f"node 0 at {self._around.place} answers: {self._awaited}")
            elif "start" in message:
                if not self._welcomed:
                    raise ValueError("nobody has named this node's place")
                self._start = Meeting.read(message["start"], self.node, self.nnodes, wire.peer)
            elif "stop" in message:
                self._stop = True
                self._stacks |= bool(message.get("stacks"))
            elif "decision" in message:
                self._decision = Decision.read(message["decision"])
            elif "notice" in message:
                self._hear(message["notice"])
        except (ValueError, OptionError):
            self._lose()  # whoever that is, it is no node 0
