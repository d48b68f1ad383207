"""200 starts at once in groups of 10, and 100 kills at random moments of the start: collisions and leftovers.

    python bench/starts.py                                 as root, or where user namespaces are allowed
    python bench/starts.py --starts 20 --kills 12

Every launch joins two ranks that sum their launch's number, so that ranks of different launches that meet are seen.
A kill hits the launcher with SIGKILL, SIGTERM, SIGINT or SIGHUP, or the warm parent or a rank with SIGKILL, at any
moment between the command and its usual end; then the same run is started again and must do its work.

All of it happens in a network namespace with a /dev/shm and a folder for temporary files of its own, where every
process, listening port and file that is left can be seen. The tests drive the same code with smaller numbers
(tests/system/test_starts.py).
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rounds import bound, machine, spread

from tests.system.doors import Doors, clean_environment
from tests.system.hosts import Hosts
from tests.system.starts import Place, Tally, kill_many, start_many


def main() -> None:
    """Count and print; exit code 1 if anything collided or was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=10, help="starts at a time")
    parser.add_argument("--kills-at-once", type=int, default=2)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the moments and the signals")
    options = parser.parse_args()
    print(machine("torch"), flush=True)
    with tempfile.TemporaryDirectory(prefix="rankrun-starts-") as folder:
        doors = Doors(Path(folder), clean_environment())
        hosts = Hosts(doors, 1)
        try:
            place = Place(doors, hosts)
            alone_s = [timed_start(place) for _ in range(3)]
            tally = start_many(place, options.starts, options.at_once)
            tally.left += place.unfinished()
            good = report(f"{options.starts} starts, {options.at_once} at once", tally)
            # Launches that run beside each other are slower than one alone.
            within_s = 0.9 * options.kills_at_once * statistics.median(alone_s)
            tally = kill_many(place, options.kills, options.kills_at_once, options.seed, within_s)
            good &= report(f"{options.kills} kills within {within_s:.1f} s, seed {options.seed}", tally)
            print(f"  {'kills that met somebody':28} {tally.hits:9}")
            print(f"  {'from the kill to nothing':28} {spread(tally.seconds)}{bound(max(tally.seconds), at_most=5)}")
        finally:
            hosts.close()
    sys.exit(0 if good else 1)


def timed_start(place: Place) -> float:
    """Seconds of one launch alone, from the command to its end."""
    began = time.monotonic()
    tally = start_many(place, 1, 1)
    if tally.failed:
        raise SystemExit(tally.failed[0])
    return time.monotonic() - began


def report(title: str, tally: Tally) -> bool:
    """Print one part; whether nothing failed and nothing was left."""
    print(f"{title}:")
    print(f"  {'launches that failed':28} {len(tally.failed):9}{bound(len(tally.failed), at_most=0)}")
    print(f"  {'left behind':28} {len(tally.left):9}{bound(len(tally.left), at_most=0)}")
    print(f"  {'launchers with a traceback':28} {len(tally.tracebacks):9}")
    for line in [*tally.failed, *tally.left, *tally.tracebacks]:
        print(f"    {line}")
    sys.stdout.flush()
    return not tally.failed and not tally.left


if __name__ == "__main__":
    main()
