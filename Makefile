# make demo | test | lint | bench | bench-gpu | chaos: each creates .venv and installs what is missing first;
# gpu-run does not, since it has to work offline.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOT ?= runs
# Of gpu-run: its time, where its results go, and the folder of CIFAR-10, if it is not data.
MINUTES ?= 9
OUT ?= $(ROOT)/gpu-run
DATA ?=
# One test process more than cores: tests wait for workers, servers and timeouts a good part of the time.
TESTERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")

.PHONY: help demo test test-slow test-slurm chaos lint format bench bench-gpu gpu-run clean

help:
	@echo "make demo    a whole study on real data: tuning, final runs, table, figures (a few minutes)"
	@echo "make test    the test suite (a few minutes)"
	@echo "make test-slow, make test-slurm: the tests of minutes; those on a real Slurm (slurm-wlm and munge installed)"
	@echo "make chaos   a sweep on a real Slurm while its workers are killed (five minutes)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   what everything costs, against its goals, on this machine's CPU (a quarter of an hour)"
	@echo "make bench-gpu  the same for its GPU"
	@echo "make gpu-run MINUTES=9 OUT=DIR  on a GPU for a short while: tests, benchmarks, sweeps; again to go on"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m harness.launch sweeps/quickstart.yaml --cluster local --root $(ROOT)
	$(BIN)/python analysis/make_figures.py --root $(ROOT) --sweep quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TESTERS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(TESTERS) -m slow

test-slurm: $(STAMP)
	$(BIN)/python -m pytest tests/slurm -m slurm

chaos: $(STAMP)
	$(BIN)/python tests/slurm/chaos.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/bench.py --json $(ROOT)/bench.json --markdown $(ROOT)/bench.md

bench-gpu: $(STAMP)
	$(BIN)/python tests/benchmarks/bench.py --device cuda --json $(ROOT)/bench-gpu.json --markdown $(ROOT)/bench-gpu.md

gpu-run:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tests/benchmarks/gpu_run.py \
		--minutes $(MINUTES) --out $(OUT) --root $(ROOT) $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV) build dist *.egg-info
