# Every target sets up what it needs. Variables: PYTHON (python3), PIP_ARGS (an index, say), ARGS (to pytest).
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK = requirements/lock$(shell $(PYTHON) -c 'import sys; print("-py310" if sys.version_info < (3, 11) else "")').txt
PIP = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup parity test lint fuzz third-party bench-shadow bench-stress bench-suite bench-lora bench-weights \
  bench-detect bench-report bench-gate find-the-bug report-images sample docs docs-check rehearsal two-environments \
  kill-and-resume method-table findings clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the pinned set and this project, once

$(READY): requirements/lock.txt requirements/lock-py310.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is not Python 3.10 or later; name one with: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 2; }
	@echo "installing $(LOCK) into $(VENV), once; this takes some minutes"
	@$(PIP) --requirement $(LOCK)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(READY)

parity: $(READY) ## judge the bundled pair, block by block, LoRA off and on
	$(BIN)/pytest -m parity --parity-pair longcat $(ARGS) tests/suite

test: $(READY) ## run every test; gets the one third-party source they need
	$(BIN)/python scripts/unpack_third_party.py wan22
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n 2 $(ARGS)

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: $(READY) ## draw 20,000 headers of checkpoints against the safetensors library; FUZZ_EXAMPLES=N draws N
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(BIN)/pytest -q tests/unit/test_checkpoint_headers.py $(ARGS)

third-party: $(READY) ## unpack every third-party source below .third_party/
	$(BIN)/python scripts/unpack_third_party.py

bench-shadow: $(READY) ## measure time and memory of shadow execution; writes benchmarks/results/shadow.md
	$(BIN)/python benchmarks/bench_shadow.py $(ARGS)

bench-lora: $(READY) ## measure `parity lora diff`; writes benchmarks/results/lora.md
	$(BIN)/python benchmarks/bench_lora.py $(ARGS)

bench-stress: $(READY) ## run the suite 200 times in one process; writes benchmarks/results/stress.md
	$(BIN)/python benchmarks/bench_stress.py $(ARGS)

bench-detect: $(READY) ## plant bugs, count what is found, placed, named; ARGS="--sample 40 --check" for CI
	PYTHONPATH=. $(BIN)/python benchmarks/bench_detect.py $(ARGS)

sample: $(READY) ## make the sample record in reports/sample/
	$(BIN)/python -m pytest -m parity --parity-pair longcat -k "block0 or final or input" --parity-report reports/sample $(ARGS) tests/suite

bench-suite: $(READY) ## measure what recording costs and a cached reference saves; writes benchmarks/results/suite.md
	$(BIN)/python benchmarks/bench_suite.py $(ARGS)

bench-weights: $(READY) ## measure matching and verifying checkpoints; writes benchmarks/results/weights.md
	PYTHONPATH=. $(BIN)/python benchmarks/bench_weights.py $(ARGS)

bench-report: $(READY) ## measure size and opening time of a large report in a browser; writes benchmarks/results/report.md
	PYTHONPATH=. $(BIN)/python benchmarks/bench_report.py $(ARGS)

bench-gate: $(READY) ## gate the healthy bundled pair on 200 seeds; writes benchmarks/results/gate.md
	PYTHONPATH=. $(BIN)/python benchmarks/bench_gate.py $(ARGS)

docs: $(READY) ## build the documentation site into build/site, with strict links
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet $(ARGS)

docs-check: $(READY) ## run every command of the documentation to its end; takes a long time
	PYTHONPATH=. $(BIN)/python scripts/check_docs.py $(ARGS)

rehearsal: $(READY) ## gate three pull requests with the action's own steps (ARGS=--write: into docs/ci.md)
	PYTHONPATH=. $(BIN)/python scripts/rehearse_pull_request.py $(ARGS)

# The scripts below are run where they exist.
method-table: $(READY) ## make the table of docs/method.md
	@test -f scripts/method_table.py || { echo "scripts/method_table.py is not part of this checkout"; exit 2; }
	$(BIN)/python scripts/method_table.py $(ARGS)

findings: $(READY) ## make the records behind docs/findings/
	@test -f scripts/findings.py || { echo "scripts/findings.py is not part of this checkout"; exit 2; }
	$(BIN)/python scripts/findings.py $(ARGS)

find-the-bug: $(READY) ## make docs/find-the-bug.md: what failing runs say of ten bugs
	@test -f scripts/find_the_bug.py || { echo "scripts/find_the_bug.py is not part of this checkout"; exit 2; }
	PYTHONPATH=. $(BIN)/python scripts/find_the_bug.py $(ARGS)

report-images: $(READY) ## take the pictures of docs/report.md from runs with planted bugs, in a browser
	@test -f scripts/report_images.py || { echo "scripts/report_images.py is not part of this checkout"; exit 2; }
	PYTHONPATH=. $(BIN)/python scripts/report_images.py $(ARGS)

two-environments: $(READY) ## judge the bundled pair across two virtual environments made below build/
	@test -f scripts/two_environments.py || { echo "scripts/two_environments.py is not part of this checkout"; exit 2; }
	$(BIN)/python scripts/two_environments.py $(ARGS)

kill-and-resume: $(READY) ## kill `parity record` at 20 random moments, resume, compare the bytes
	@test -f scripts/kill_and_resume.py || { echo "scripts/kill_and_resume.py is not part of this checkout"; exit 2; }
	$(BIN)/python scripts/kill_and_resume.py $(ARGS)

clean: ## remove what the targets made, .venv and third-party sources included
	rm -rf $(VENV) .third_party .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
