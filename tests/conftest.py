"""Tests say what they left out.

`@pytest.mark.needs("slurm", "netns")` on a test names what it asks of the machine. Where that is missing the
test is skipped, and the last lines of the whole run say which tests were left out, why, and what would cure
it:

    2 tests not run, because there is no slurmctld here; cure: apt-get install slurm-wlm munge
        tests/system/test_requeue.py::test_time_limit

RANKRUN_REQUIRE=slurm,netns,tmpfs,ffmpeg (as CI sets it) turns such a gap into a failure. Any other skip is listed
as well, so that none hides a gap.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Need:
    """Something a test may ask of the machine: `missing()` returns why it isn't there, or None."""

    missing: Callable[[], str | None]
    cure: str


def _no_linux() -> str | None:
    return None if sys.platform == "linux" else f"this is {sys.platform}, not Linux"


@functools.cache
def _no_slurm() -> str | None:
    # A plain user's PATH lacks the sbin folders where Debian puts the daemons.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    absent = [name for name in ("slurmctld", "slurmd", "munged", "srun") if shutil.which(name, path=path) is None]
    return f"there is no {', '.join(absent)} here" if absent else None


@functools.cache
def _no_netns() -> str | None:
    if sys.platform != "linux":
        return _no_linux()
    absent = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if absent:
        return f"there is no {', '.join(absent)} command here"
    # As root directly, else inside a user namespace; containers often forbid both.
    for options in (["--net"], ["--user", "--map-root-user", "--net"]):
        if subprocess.run(["unshare", *options, "true"], capture_output=True, timeout=60).returncode == 0:
            return None
    return "this machine does not let us make a network namespace"


def _no_fashion_mnist() -> str | None:
    return None if FASHION_MNIST.is_dir() else f"there is no {FASHION_MNIST}"


@functools.cache
def _no_tmpfs() -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root can mount a small disk"
    with tempfile.TemporaryDirectory() as place:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True)
        if tried.returncode != 0:
            return "this machine does not let root mount a tmpfs"
        subprocess.run(["umount", place], check=True)
    return None


def _no_ffmpeg() -> str | None:
    return None if shutil.which("ffmpeg") else "there is no ffmpeg here"


@contextlib.contextmanager
def memory_group() -> Iterator[Path]:
    """A memory cgroup of our own; OSError where none can be made."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    place = Path(tempfile.mkdtemp(prefix="rankrun-test-", dir=v1 if v1.is_dir() else v2))
    try:
        yield place
    finally:
        place.rmdir()


@functools.cache
def _no_memcg() -> str | None:
    try:
        with memory_group() as place:
            limits = [name for name in ("memory.max", "memory.limit_in_bytes") if (place / name).exists()]
    except OSError as error:
        return f"no memory cgroup can be made here ({error.strerror})"
    return None if limits else "a cgroup that is made here has no memory limit"


NEEDS = {
    "linux": Need(_no_linux, "run on Linux"),
    "slurm": Need(_no_slurm, "apt-get install slurm-wlm munge"),
    "netns": Need(
        _no_netns,
        "apt-get install iproute2, run as root or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)",
    ),
    "tmpfs": Need(_no_tmpfs, "run as root, in a container with CAP_SYS_ADMIN"),
    "memcg": Need(_no_memcg, "run as root on Linux, in a container with a writable /sys/fs/cgroup"),
    "ffmpeg": Need(_no_ffmpeg, "apt-get install ffmpeg"),
    "fashion-mnist": Need(_no_fashion_mnist, "apt-get install dataset-fashion-mnist"),
}


# Tests with such a marker run only where the option of its name is given; the last lines count them.
MORE = {"exhaustive": "more cells of the failure table: make faults"}


def required() -> set[str]:
    """Names in RANKRUN_REQUIRE; an unknown one stops the whole run."""
    names = {name.strip() for name in os.environ.get("RANKRUN_REQUIRE", "").split(",")} - {""}
    unknown = sorted(names - NEEDS.keys())
    if unknown:
        raise pytest.UsageError(f"RANKRUN_REQUIRE names {', '.join(unknown)}; known are {', '.join(NEEDS)}")
    return names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="whole tables, of which a part is tried otherwise")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in MORE:
        if config.getoption(f"--{marker}"):
            continue
        more = [item for item in items if item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=more)
        items[:] = [item for item in items if item not in set(more)]
        config.stash[LEFT_OUT].more[marker] = len(more)


def pytest_configure(config: pytest.Config) -> None:
    required()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        # A run under nohup, or behind a shell's `&`, stays deaf, but what it starts must not inherit that.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    config.stash[LEFT_OUT] = LeftOut()
    config.pluginmanager.register(config.stash[LEFT_OUT])


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if name not in NEEDS:
                raise pytest.UsageError(f"{item.nodeid} needs {name!r}; known are {', '.join(NEEDS)}")
            reason = NEEDS[name].missing()
            if reason is None:
                continue
            line = f"not run, because {reason}; cure: {NEEDS[name].cure}"
            if name in required():
                pytest.fail(f"{line} (RANKRUN_REQUIRE names {name})", pytrace=False)
            pytest.skip(line)


class LeftOut:
    """What a run leaves out, and why; where workers run the tests (`-n`), their controller hears it from them."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}  # by reason
        self.more: dict[str, int] = {}  # by marker

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.tests.setdefault(reason, []).append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.more = getattr(node, "workeroutput", {}).get("more", self.more)

    # Outermost, so that these are the last lines, below pytest's own count.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["more"] = self.more
        result = yield
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:  # a worker has none
            for line in self.lines():
                reporter.write_line(line)
        return result

    def lines(self) -> Iterator[str]:
        told = {r if r.startswith("not run, because") else f"skipped: {r}": tests for r, tests in self.tests.items()}
        for reason, tests in sorted(told.items()):
            yield f"{len(tests)} test{'s' if len(tests) > 1 else ''} {reason}"
            yield from (f"    {test}" for test in sorted(tests))
        yield from (f"{count} {MORE[marker]}" for marker, count in self.more.items() if count)


LEFT_OUT = pytest.StashKey[LeftOut]()


@pytest.fixture
def memcg() -> Iterator[Callable[[int, list[str]], list[str]]]:
    """`memcg(limit_bytes, words)`: the words of a command that runs in a memory cgroup with that limit."""
    with contextlib.ExitStack() as groups:

        def within(limit_bytes: int, words: list[str]) -> list[str]:
            place = groups.enter_context(memory_group())
            name = "memory.max" if (place / "memory.max").exists() else "memory.limit_in_bytes"
            (place / name).write_text(str(limit_bytes))
            return ["sh", "-c", f'echo $$ > {place}/cgroup.procs && exec "$@"', "sh", *words]

        yield within
