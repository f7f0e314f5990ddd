# make setup | demo | test | lint | bench | fuzz
PYTHON ?= python3
BACKBONE ?= resnet18
SCALE ?= 1
# Tests: two workers with one thread each are faster than one worker with two.
WORKERS ?= 2
# Of the fuzzing campaign.
INPUTS ?= 20000
SEED ?= 0
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench fuzz clean

help:
	@echo "make setup                     make .venv and install everything (PYTHON=/path/to/python3)"
	@echo "make demo                      pretrain, convert, fine-tune, collect on the embedded data"
	@echo "make demo BACKBONE=resnet50 SCALE=2"
	@echo "make test                      all tests (WORKERS=2)"
	@echo "make lint                      ruff and mypy"
	@echo "make bench                     every benchmark"
	@echo "make fuzz                      damaged files for every reader (INPUTS=20000 SEED=0), counts to docs"
	@echo "make clean                     remove caches (not .venv, runs or datasets)"

setup:
	@$(PYTHON) scripts/setup.py

demo: setup
	@$(PY) scripts/demo.py --backbone $(BACKBONE) --scale $(SCALE)

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: setup
	@for file in $(filter-out benchmarks/__init__.py benchmarks/reference.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(PY) $$file || exit 1; done

fuzz: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz.campaign --inputs $(INPUTS) --seed $(SEED) --write docs/fuzzing.md

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
