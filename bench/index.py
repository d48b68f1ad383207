"""The index of a meta file beside `wc -l`: how long it takes to make, how large it is, how fast it opens.

    python bench/index.py --folder /scratch --rows 50000000
    python bench/index.py --meta train.txt

Made in this process, from nothing to the published sidecar, content sums included, by as many threads as there are
processors (4 at most). `wc -l` is a process of its own. The page cache is warm after a round that does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lists import meta_file
from rounds import bound, compare, interleaved, machine, spread

from data.index.census import cpus, open_census


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    source = options.meta or meta_file(options.folder, options.rows)
    print(machine("numpy"))
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        # a name of its own: an index that is there already stays as it is
        path = Path(folder) / source.name
        path.symlink_to(source.resolve())
        measure(path, options.rounds)


def measure(path: Path, rounds: int) -> None:
    """The three figures of one file."""

    def made() -> None:
        sidecar.unlink(missing_ok=True)
        open_census(path, force=True)

    def opened() -> None:
        assert open_census(path).totals is not None

    def counted() -> str:
        return subprocess.run(["wc", "-l", str(path)], capture_output=True, text=True, check=True).stdout

    first = open_census(path, force=True)
    sidecar = path.with_name(path.name + ".rankrun-index")
    assert int(first.counts.sum()) == int(counted().split()[0]), "another number of lines than wc's"
    made()
    assert open_census(path).fingerprint == first.fingerprint, "made twice, and not the same"
    size = path.stat().st_size
    print(f"{first.rows:,} rows, {size / 1e9:.2f} GB, {cpus(4)} threads")
    times = interleaved({"index": made, "wc -l": counted}, rounds)
    print(compare("made", times, "index", "wc -l", at_most=1.0))
    share = sidecar.stat().st_size / size
    print(f"sidecar: {sidecar.stat().st_size:,} bytes, {share:.4%} of the file{bound(100 * share, 0.08)}")
    warm = interleaved({"warm open": opened}, rounds)["warm open"]
    print(f"warm open: {spread(warm)}{bound(sorted(warm)[len(warm) // 2], 0.010)}")


if __name__ == "__main__":
    main()
