"""Where the ranks of one attempt meet: a fresh TCPStore on a fresh port for every attempt, hosted by the agent.

torch's own handlers keep one store for all attempts, in which restarted ranks meet the addresses of dead ones
(pytorch#135712). The port is bound before anyone is told, so no other process can take it in between.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # re-exported by a star
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

LOOPBACK = "127.0.0.1"
_TIMEOUT = timedelta(seconds=300)


class FreshStoreRendezvous(RendezvousHandler):
    """One node that is always complete, and a store that never outlives its attempt."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._closed = False
        self._store: Store | None = None

    def get_backend(self) -> str:
        """The name that elastic shows for this handler."""
        return "rankrun"

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store, reachable from this machine only, and node 0 of 1."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((LOOPBACK, 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        # The store owns the descriptor from here on. The old attempt's store goes when it is replaced.
        self._store = TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        info = RendezvousStoreInfo(LOOPBACK, port)
        return RendezvousInfo(PrefixStore("rankrun", self._store), 0, 1, info)

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
        """None ever: on one machine the agent alone is the world."""
        return 0

    def get_run_id(self) -> str:
        """The run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """Close the store."""
        self._store = None
        self._closed = True
        return True
