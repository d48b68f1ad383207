#!/bin/sh
# Finds a Python for rankrun and lets it make the environment (tools/environment.py). `make setup` calls this.
#
#   PYTHON=…      the interpreter to try first
#   VENV=…        where the environment goes (default: .venv)
#   TORCH=system  reuse the torch that the interpreter already has
set -u

here=$(cd "$(dirname "$0")" && pwd) || exit 1
venv=${VENV:-.venv}

# Being on PATH is not enough: a pyenv shim exists for every version that some pyenv environment has and fails when
# run, and a Python built without ssl can't reach an index.
works() {
    "$1" -c 'import ssl, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3.14 python3.13 python3.12 python3.11 python3; do
        works "$candidate" && echo "$candidate" && return
    done
    # Made by a Python that is out of reach now (a conda environment, a module): good enough to see it is up to date.
    works "$venv/bin/python" && echo "$venv/bin/python" && return
    return 1
}

if [ -n "${PYTHON:-}" ]; then
    works "$PYTHON" && exec "$PYTHON" "$here/environment.py" --named --venv "$venv" --torch "${TORCH:-}"
    echo "setup: PYTHON=$PYTHON does not run, is older than 3.11 or lacks ssl; looking for another" >&2
fi
if ! python=$(find_python); then
    cat >&2 <<'END'
setup: found no Python from 3.11 on that runs. Get one in any of these ways, then run `make setup` again:
    uv:      uv python install 3.13 && export PYTHON="$(uv python find 3.13)"
    conda:   conda create -n py313 python=3.13 && conda activate py313
    module:  module avail python, then module load the newest   (on a cluster)
    by hand: make setup PYTHON=/path/to/python3
END
    exit 2
fi

exec "$python" "$here/environment.py" --venv "$venv" --torch "${TORCH:-}"
