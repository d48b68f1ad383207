"""Makes the project's environment with the Python that runs this file. Standard library only.

    read the stamp -> check free space -> make the environment -> ask the index -> install -> try -> stamp

The stamp (rankrun-setup.json in the environment) says what was installed from which pyproject.toml and
constraints.txt, so a second call is quick. While work goes on it says "unfinished": after a kill, an
environment that this file made is made anew, and one that was there before is installed into again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST_TORCH = (2, 11)
GB = 10**9
# Measured with torch 2.14.1 on Linux: 5.5 GB installed, and pip holds 2.6 GB of wheels in its temporary
# folder before it installs the first. Wheels for macOS bring no CUDA.
ENVIRONMENT_GB, WHEELS_GB = (6, 3) if sys.platform == "linux" else (2, 1)


@dataclass(frozen=True)
class Stamp:
    state: str  # "unfinished" | "done"
    made_here: bool  # this file made the environment, so it may remove it
    venv: str
    root: str  # the clone that is installed, editable
    python: str  # version and home of the interpreter
    torch: str  # "" | "system"
    inputs: str  # hash of pyproject.toml and constraints.txt

    def write(self) -> None:
        path = stamp_file(Path(self.venv))
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)


def say(line: str) -> None:
    print(f"setup: {line}", flush=True)


def stop(*parts: str) -> NoReturn:
    """One line about what is wrong and what to do, exit code 2."""
    print(f"setup: {' '.join(parts)}", file=sys.stderr)
    raise SystemExit(2)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    venv: Path = options.venv
    wanted = Stamp(
        state="done",
        made_here=True,
        venv=str(venv),
        root=str(ROOT),
        python=f"{sys.version.split()[0]} {sys.base_prefix}",
        torch=options.torch,
        inputs=inputs_hash(),
    )
    found, usable = read_stamp(venv), runs(python_of(venv))
    if found is not None and usable and fits(found, wanted, options.named):
        say(f"{venv} is up to date")
        return
    if found is None and not usable and venv.exists() and (not venv.is_dir() or any(venv.iterdir())):
        stop(f"VENV={venv} is there and is not a Python environment; name another place, or remove it")

    check_space(venv, options.torch)
    if found is not None and found.made_here and (not usable or beyond_mending(found, wanted, options.named)):
        if Path(sys.prefix) == venv:
            stop(f"{venv} must be made anew, and no other Python is in reach: activate or load one")
        say(f"{venv} is unfinished or was made for something else; making it anew")
        shutil.rmtree(venv)
        found, usable = None, False
    venv.mkdir(parents=True, exist_ok=True)
    unfinished = replace(wanted, state="unfinished", made_here=not usable)
    if found is not None:
        unfinished = replace(unfinished, made_here=found.made_here, python=found.python)
    unfinished.write()
    try:
        if not usable:
            make(venv, options.torch)
        constraints = system_constraints(venv) if options.torch else CONSTRAINTS
        if not options.torch:
            check_index(venv)
    except BaseException:
        if not usable:  # nothing was downloaded yet, so nothing half-made needs to stay
            shutil.rmtree(venv, ignore_errors=True)
        raise
    say("installing the versions of constraints.txt; some minutes the first time")
    # setuptools first and then no isolated build, or pip would fetch an untested setuptools to build with.
    pip_install(venv, "-c", str(constraints), "setuptools>=77")
    pip_install(venv, "-c", str(constraints), "--no-build-isolation", "-e", ".[demo,dev]")
    try_it(venv)
    replace(unfinished, state="done").write()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="environment.py", description="Makes the project's environment.")
    parser.add_argument("--venv", required=True, type=lambda text: Path(text).expanduser().absolute())
    parser.add_argument("--torch", default="", help='"system" reuses the torch of this interpreter')
    parser.add_argument("--named", action="store_true", help="this very interpreter was asked for (PYTHON=…)")
    options = parser.parse_args(arguments)
    if options.torch not in ("", "system"):
        stop(f"TORCH={options.torch} is unknown; leave it out, or reuse an installed torch with TORCH=system")
    return options


# What is there


def stamp_file(venv: Path) -> Path:
    return venv / "rankrun-setup.json"


def read_stamp(venv: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(stamp_file(venv).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def inputs_hash() -> str:
    parts = [path.read_bytes() for path in (ROOT / "pyproject.toml", CONSTRAINTS)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def python_of(venv: Path) -> str:
    return str(venv / "bin" / "python")


def ask(python: str, code: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=cwd)


def runs(python: str) -> bool:
    try:
        return ask(python, "").returncode == 0
    except OSError:
        return False


def beyond_mending(found: Stamp, wanted: Stamp, named: bool) -> bool:
    """True for what installing again can't mend: torn, moved, other torch, not the Python that was named."""
    other_python = named and found.python != wanted.python
    return (found.state, found.venv, found.torch) != ("done", wanted.venv, wanted.torch) or other_python


def fits(found: Stamp, wanted: Stamp, named: bool) -> bool:
    same = (found.root, found.inputs) == (wanted.root, wanted.inputs)
    return same and not beyond_mending(found, wanted, named)


# Checks before anything is downloaded


def check_space(venv: Path, torch: str) -> None:
    """Free space where the environment and pip's temporary files go, which may be one file system."""
    if torch == "system":
        return
    needed: dict[int, tuple[Path, int]] = {}
    for folder, size_gb in ((venv, ENVIRONMENT_GB), (Path(tempfile.gettempdir()), WHEELS_GB)):
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        first, so_far_gb = needed.get(device, (folder, 0))
        needed[device] = (first, so_far_gb + size_gb)
    for folder, size_gb in needed.values():
        free_gb = shutil.disk_usage(folder).free / GB
        if free_gb < size_gb:
            stop(
                f"{folder} has {free_gb:.1f} GB free and {size_gb} are needed: {ENVIRONMENT_GB} for the",
                f"environment and {WHEELS_GB} for pip's downloads in $TMPDIR. Free some, or place them",
                "elsewhere: make setup VENV=/big/venv TMPDIR=/big/tmp",
            )


def check_index(venv: Path) -> None:
    """pip itself lists the torches that it can get, so its own mirror, proxy and certificates count."""
    wanted = pinned(CONSTRAINTS)["torch"]
    command = [python_of(venv), "-m", "pip", "index", "versions", "--retries", "2", "torch"]
    listing = subprocess.run(command, capture_output=True, text=True)
    available = re.search(r"^Available versions: (.*)$", listing.stdout, re.MULTILINE)
    if available is None:
        stop(
            f"pip found no torch ({last_line(listing.stderr)}): the package index can't be reached, or has",
            f"none for this Python. Proxy: {proxy()}. pip's settings: {pip_settings(venv)}.",
            "Set https_proxy, or point pip at your mirror: pip config set global.index-url …",
        )
    versions = available[1].split(", ")
    if wanted not in versions:
        stop(
            f"the package index has torch {', '.join(versions[:3])}, … but not {wanted} for Python",
            f"{sys.version.split()[0]} on {sys.platform}. Take another Python (make setup PYTHON=…), or",
            "reuse an installed torch (make setup TORCH=system)",
        )


def proxy() -> str:
    """The proxy that the environment names, without its password."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "PIP_PROXY"):
        if value := os.environ.get(name):
            return f"{name}={without_password(value)}"
    return "none set"


def pip_settings(venv: Path) -> str:
    command = [python_of(venv), "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in listing.stdout.splitlines() if re.search(r"index|proxy|find.links", line)]
    return without_password(", ".join(lines)) or "its own"


def without_password(text: str) -> str:
    return re.sub(r"//[^@/\s]*@", "//…@", text)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


# Acts


def make(venv: Path, torch: str) -> None:
    """A new environment at `venv` with pip in it, by the first of venv, virtualenv and uv that works here."""
    options = [*(["--system-site-packages"] if torch == "system" else []), str(venv)]
    ways: dict[str, list[str]] = {}
    if importlib.util.find_spec("ensurepip"):  # Debian ships it apart, and venv makes no pip without it
        ways["venv"] = [sys.executable, "-m", "venv"]
    if importlib.util.find_spec("virtualenv"):
        ways["virtualenv"] = [sys.executable, "-m", "virtualenv", "--quiet"]
    elif program := shutil.which("virtualenv"):
        ways["virtualenv"] = [program, "--quiet", "--python", sys.executable]
    if program := shutil.which("uv"):
        ways["uv"] = [program, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable]
    tried = [] if "venv" in ways else ["venv: this Python has no ensurepip"]
    for name, command in ways.items():
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        if done.returncode == 0:
            say(f"made {venv} with {name}, Python {sys.version.split()[0]} ({sys.executable})")
            return
        tried.append(f"{name}: {last_line(done.stderr or done.stdout)}")
    stop(
        f"could not make an environment with {sys.executable} ({'; '.join(tried)}). On Debian and Ubuntu:",
        f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv. Elsewhere:",
        "pip install --user virtualenv, or install uv",
    )


def pinned(constraints: Path) -> dict[str, str]:
    """Name (normalised) -> version of every `name==version` line."""
    lines = (line.partition("#")[0].strip().partition("==") for line in constraints.read_text().splitlines())
    return {normalised(name): version for name, _, version in lines if version}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def system_constraints(venv: Path) -> Path:
    """The constraints for TORCH=system: torch as it is there, ours for what the system doesn't have."""
    show_system_packages(venv)
    code = (
        "import importlib.metadata as m, json\n"
        "rows = [[d.metadata['Name'], d.version, str(d.locate_file(''))] for d in m.distributions()]\n"
        "print(json.dumps(rows))"
    )
    listed = json.loads(ask(python_of(venv), code).stdout)
    # What stands first on sys.path is what gets imported, so it is written over what stands behind.
    places = {normalised(name): Path(place) for name, _, place in reversed(listed)}
    seen = {normalised(name): version for name, version, _ in reversed(listed)}
    if "torch" not in seen:
        stop(
            f"TORCH=system, but {sys.executable} has no torch; leave TORCH out, or name a Python that",
            "has it: make setup TORCH=system PYTHON=…",
        )
    if tuple(int(part) for part in re.findall(r"\d+", seen["torch"])[:2]) < OLDEST_TORCH:
        stop(f"TORCH=system, but {sys.executable} has torch {seen['torch']}; it must be 2.11 or newer")
    keep: dict[str, str] = {name: seen[name] for name in ("torch", "torchvision") if name in seen}
    for name, version in pinned(CONSTRAINTS).items():
        of_system = name in places and venv not in places[name].parents
        # torch asks for its own CUDA packages, triton and setuptools: ours would contradict another torch.
        if not of_system and not name.startswith(("nvidia-", "cuda-", "triton", "setuptools")):
            keep.setdefault(name, version)
    if "torchvision" not in seen:
        del keep["torchvision"]  # pip takes the one that asks for this torch
    path = venv / "constraints-system.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in keep.items()))
    return path


def show_system_packages(venv: Path) -> None:
    """Shows the environment this Python's packages where this Python is an environment itself.

    There --system-site-packages shows only those of the Python that it was made with.
    """
    if ask(python_of(venv), "import importlib.util as u; assert u.find_spec('torch')").returncode:
        folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        purelib = ask(python_of(venv), "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        (Path(purelib) / "rankrun-system-torch.pth").write_text("".join(f"{folder}\n" for folder in folders))


def pip_install(venv: Path, *arguments: str) -> None:
    """pip's words go to setup.log; big downloads are shown as well, since they are what one waits for."""
    log = venv / "setup.log"
    command = [python_of(venv), "-m", "pip", "install", "--no-input", "--progress-bar=off", *arguments]
    error = "no message"
    with log.open("a") as file:
        pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        assert pip.stdout is not None
        for line in pip.stdout:
            file.write(line)
            if line.lower().startswith("error"):
                error = line.strip()
            big = re.search(r"Downloading (?:\S*/)?([^\s/-]+)-(\d[^\s-]*)\S* \((\d\d+\.\d MB|.* GB)\)", line)
            if big:
                say(f"downloading {big[1]} {big[2]}, {big[3]}")
    if pip.wait():
        stop(f"pip could not install ({error}); all it said is in {log}. Mend that and run `make setup` again")


def try_it(venv: Path) -> None:
    code = "import rankrun, torch, torchvision; print(torch.__version__, torchvision.__version__)"
    done = ask(python_of(venv), code, cwd=ROOT)
    if done.returncode:
        stop(
            f"what was installed in {venv} does not import ({last_line(done.stderr)}). torch and torchvision",
            "must be built for each other: remove that folder and run `make setup` again, without",
            "TORCH=system",
        )
    torch, torchvision = done.stdout.split()
    say(f"{venv} is ready: torch {torch}, torchvision {torchvision}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
