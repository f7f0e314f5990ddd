# make setup | demo | test | lint | bench | fuzz | wheelhouse | site
PYTHON ?= python3
BACKBONE ?= resnet18
SCALE ?= 1
QUICK ?=
# Tests: two workers with one thread each are faster than one worker with two.
WORKERS ?= 2
# Of the fuzzing campaign.
INPUTS ?= 20000
SEED ?= 0
PY := .venv/bin/python
# Links and anchors that lead nowhere are errors (not with --quiet, which does not count them).
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
# `DEV=0` and `QUICK=no` are off.
ON = $(filter-out 0 no false off,$(1))
WITH = $(if $(call ON,$(DEV)),--dev)

.DEFAULT_GOAL := help
# What checks the report's JavaScript, from npm; the page needs none of it.
JAVASCRIPT = scripts/javascript
CHECKERS = $(JAVASCRIPT)/node_modules/.package-lock.json

.PHONY: help setup setup-dev wheelhouse lock site tables release-check demo test lint lint-python lint-javascript results bench faults fuzz clean

help:
	@echo "make setup                     make .venv and install what the suite needs (PYTHON=/path/to/python3)"
	@echo "make setup DEV=1               and what tests and linters need, as make test and make lint do"
	@echo "make wheelhouse                gather all of it in WHEELHOUSE=wheelhouse (DEV=1), for no network"
	@echo "make setup WHEELHOUSE=DIR      install from there alone, every hash checked"
	@echo "make demo                      pretrain, convert, fine-tune, collect on the embedded data"
	@echo "make demo QUICK=1              the same in under two minutes, at the smallest size"
	@echo "make demo BACKBONE=resnet50 SCALE=2"
	@echo "make test                      all tests (WORKERS=2)"
	@echo "make lint                      ruff, mypy, links of the documentation; the report's JavaScript with npm"
	@echo "make lint-javascript           the report's JavaScript alone"
	@echo "make results                   every picture and table of docs/results from docs/results/corpus (minutes)"
	@echo "make tables                    the documentation's tables and code alone"
	@echo "make site                      the documentation, site/index.html"
	@echo "make bench                     every benchmark, kept in docs/results/corpus (NAMES=\"head views\" for some)"
	@echo "make faults                    kill, cut off and fill the disk at every file operation (hours)"
	@echo "make fuzz                      damaged files for every reader (INPUTS=20000 SEED=0), counts to docs"
	@echo "make release-check             lint, tests, version, changelog, wheel and sdist"
	@echo "make clean                     remove caches (not .venv, runs or datasets)"

setup:
	@$(PYTHON) scripts/setup.py $(WITH) $(if $(WHEELHOUSE),--wheelhouse "$(WHEELHOUSE)")

wheelhouse:
	@$(MAKE) --no-print-directory setup WHEELHOUSE=
	@$(PY) scripts/wheelhouse.py "$(or $(WHEELHOUSE),wheelhouse)" $(WITH)

lock: setup-dev
	@$(PY) scripts/wheelhouse.py --lock

setup-dev:
	@$(PYTHON) scripts/setup.py --dev $(if $(WHEELHOUSE),--wheelhouse "$(WHEELHOUSE)")

demo: setup
	@$(PY) scripts/demo.py --backbone $(BACKBONE) --scale $(SCALE) $(if $(call ON,$(QUICK)),--quick)

test: setup-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

lint: lint-python $(if $(shell command -v npm),lint-javascript)
	$(if $(shell command -v npm),,@echo "npm is not here: the report's JavaScript was not checked")

lint-python: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@$(BUILD_SITE)

lint-javascript: $(CHECKERS)
	npm --prefix $(JAVASCRIPT) run --silent lint

$(CHECKERS): $(JAVASCRIPT)/package-lock.json
	npm --prefix $(JAVASCRIPT) ci --no-audit --no-fund
	@touch $@

release-check: lint test
	@$(PY) scripts/release_check.py

results: setup-dev
	@$(PY) scripts/draw_results.py
	@$(PY) scripts/write_tables.py

tables: setup-dev
	@$(PY) scripts/write_tables.py

site: setup-dev
	@$(BUILD_SITE)
	@echo "open site/index.html"

bench: setup-dev
	@$(PY) scripts/run_benchmarks.py $(NAMES)

faults: setup-dev
	OMP_NUM_THREADS=1 $(PY) -m tests.faults.campaign $(COMMANDS)

fuzz: setup-dev
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz.campaign --inputs $(INPUTS) --seed $(SEED) --write docs/fuzzing.md

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
