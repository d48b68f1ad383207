"""Where the ranks of one attempt meet: a fresh TCPStore on a fresh port for every attempt, hosted by node 0's agent.

torch's own handlers keep one store for all attempts, in which restarted ranks meet the addresses of dead ones
(pytorch#135712). The port is bound before anyone is told, so no other process can take it in between.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]  # re-exported by a star
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from rankrun.errors import MachineError
from rankrun.launch.nodes.messages import Meeting
from rankrun.launch.nodes.place import Place
from rankrun.launch.nodes.team import Team

LOOPBACK = "127.0.0.1"
_TIMEOUT_S = 300.0
_BACKLOG = 4096


class TeamRendezvous(RendezvousHandler):
    """elastic's view of the team: who is there is agreed between the agents, and a store lives for one attempt."""

    def __init__(
        self,
        run_id: str,
        team: Team,
        place: Place | None,
        next_attempt: Callable[[], int],
        *,
        port: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """`port` was asked for on a single machine; `timeout_s` is for one operation of the agent on the store."""
        self._run_id = run_id
        self._port = port
        self._timeout = timedelta(seconds=_TIMEOUT_S if timeout_s is None else timeout_s)
        self._team = team
        self._place = place
        self._next_attempt = next_attempt
        self._closed = False
        self._store: Store | None = None
        self.meeting: Meeting | None = None

    def get_backend(self) -> str:
        """The name that elastic shows for this handler."""
        return "rankrun"

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes for one more attempt."""
        self._store = None  # the old attempt's goes before anybody is told of a new one
        meeting = self.meeting = self._team.meet(self._begin)
        # What elastic would ask a store for, the agents have agreed on. Given the ranks' one it would keep that open
        # until it has the next one, and a port that was asked for would be taken.
        address = RendezvousStoreInfo(meeting.address, meeting.port)
        return RendezvousInfo(HashStore(), meeting.node, meeting.nnodes, address)

    def _begin(self) -> tuple[int, str, int]:
        """On node 0: the attempt's number, and the address and port of its store."""
        if self._place is None:
            address, listener = LOOPBACK, self._listener()
        else:
            address, listener = self._place.address, self._place.store_listener()
        port = listener.getsockname()[1]
        # The store owns the descriptor from here on.
        self._store = TCPStore(
            address,
            port,
            is_master=True,
            timeout=self._timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        return self._next_attempt(), address, port

    def _listener(self) -> socket.socket:
        try:
            return socket.create_server((LOOPBACK, self._port or 0), backlog=_BACKLOG)
        except OSError as error:
            if self._port is None:
                raise
            raise MachineError(
                f"--master-port {self._port} can't be had: {os.strerror(error.errno or 0)}. Leave it out, and a free "
                "port is taken"
            ) from error

    @property
    def use_agent_store(self) -> bool:
        """True: rank 0 is a client of this store like all others and opens none of its own."""
        return True

    def is_closed(self) -> bool:
        """Whether the agent has ended the rendezvous."""
        return self._closed

    def set_closed(self) -> None:
        """End it."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """None ever: nodes that come back wait for the end of the attempt."""
        return 0

    def get_run_id(self) -> str:
        """What TORCHELASTIC_RUN_ID says."""
        return self._run_id

    def shutdown(self) -> bool:
        """Close the store."""
        self._store = None
        self._closed = True
        return True
