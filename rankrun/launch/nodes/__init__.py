"""Several machines as one launch: node 0's agent is the head, every other agent keeps one connection to it.

node 1 ── hello ──>  node 0            every message is one line of JSON; the end of a connection is the news
       <─ welcome ──                   that its other end died, and a beat a second shows that a quiet one lives
       ── prepared ─>
       <── start ───                   attempt, port of its store, ranks of each node       (once per attempt)
       ── failed ──>
       <── stop ────                   to all: stop your ranks and say how they ended
       ── report ──>
       <─ decision ─                   restart, or end with this code                       (the same for all)
"""
