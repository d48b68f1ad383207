# The verbs of this project; `make` alone lists them. GNU make 3.81, as macOS has it, is enough.

VENV    ?= .venv
NPROC   ?= 2
WORKERS ?= 4
CONFIG  ?=
EPOCHS  ?=
FASHION ?=
TORCH   ?=
ARGS    ?=
BENCH   ?= launch restart starts index shard order boundary memory

PY := "$(VENV)/bin/python"
# Many tests wait for processes of their own, so more workers than processors are no waste.
PARALLEL := -n $(WORKERS)
# A forked process may not use Apple's frameworks, so there every rank is a process of its own.
START := $(if $(filter Darwin,$(shell uname -s)),--start exec)
# Another number of epochs is another run, so it gets a folder of its own.
FASHION_RUN := fashion_mnist$(if $(EPOCHS),-$(EPOCHS)-epochs)

.DEFAULT_GOAL := help
.PHONY: help setup demo fashion run test test-fast faults lint format types bench wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  VENV=folder (default .venv)   PYTHON=interpreter   TORCH=system reuses an installed torch"
	@echo "  NPROC=ranks (default 2)       ARGS=more words for run, test and bench"
	@echo "  WORKERS=processes of test (default 4)"

setup: ## make the environment in .venv, with the tested versions; quick when nothing changed
	@VENV="$(VENV)" TORCH="$(TORCH)" sh tools/setup.sh

demo: setup ## train two ranks on 1,797 handwritten digits, evaluate, draw, predict
	$(PY) datasets/digits.py
	$(PY) launch.py run configs/digits.yaml --nproc $(NPROC) $(START)
	@test runs/digits/predictions.csv -nt runs/digits/final.json || { set -x; \
	$(PY) predict.py runs/digits datasets/digits/val.txt --out runs/digits/predictions.csv; }
	@$(PY) tools/results.py runs/digits

fashion: setup ## the same on 70,000 pictures of clothes; EPOCHS=5, FASHION=folder with the idx files
	$(PY) datasets/fashion_mnist.py $(if $(FASHION),--from "$(FASHION)")
	$(PY) launch.py run configs/fashion_mnist.yaml --nproc $(NPROC) $(START) --name $(FASHION_RUN) \
	    $(if $(EPOCHS),train.epochs=$(EPOCHS))
	@$(PY) tools/results.py runs/$(FASHION_RUN)

run: setup ## train what a config says: make run CONFIG=configs/digits.yaml NPROC=2 ARGS="optim.lr=0.05"
	@test -n "$(CONFIG)" || { echo "make run: which? make run CONFIG=configs/digits.yaml NPROC=2" >&2; exit 2; }
	$(PY) launch.py run "$(CONFIG)" --nproc $(NPROC) $(START) $(ARGS)

test: setup ## all tests; the last lines say what was left out and why
	$(PY) -m pytest $(PARALLEL) $(ARGS)

test-fast: setup ## the tests without the slow ones
	$(PY) -m pytest $(PARALLEL) -m "not slow" $(ARGS)

faults: setup ## the whole failure table, with times, printed (half an hour)
	$(PY) -m pytest -s -q --exhaustive tests/system/test_failures.py $(ARGS)

lint: setup ## ruff: style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## let ruff rewrite the format
	$(PY) -m ruff format .

types: setup ## mypy, strict, on rankrun, data and models
	$(PY) -m mypy

bench: setup ## measure what is claimed, beside the peers (an hour); BENCH="launch index" picks some
	@set -e; for name in $(BENCH); do echo "== $$name"; $(PY) "bench/$$name.py" $(ARGS); done

wheel: setup ## build dist/rankrun-*.whl
	rm -rf build dist
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

clean: ## remove what was built and cached; runs, datasets and the environment stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
