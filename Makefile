PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What lqray runs with, and what its tests and linters want besides.
RUNS := $(VENV)/.installed-for-runs
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test test-hosts check lint docs fuzz soak bench cuda-check emulate ui lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

$(RUNS): requirements.lock pyproject.toml setup.py $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lqray needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
	@$(BIN)/lqray doctor | grep operators || true

$(INSTALLED): $(RUNS) requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.lock
	@touch $@

run: $(RUNS)  ## install into .venv, run experiments/quickstart.yaml, print the comparison
	$(BIN)/lqray run experiments/quickstart.yaml

test: $(INSTALLED)  ## install into .venv, run the tests
	$(BIN)/python -m tests.streams

test-hosts: $(INSTALLED)  ## ray up over ssh, jobs, SLURM: on "hosts" that this machine makes (needs root and Linux; see docs/verification.md)
	LQRAY_TEST_HOSTS=1 $(BIN)/python -m pytest tests/cluster -m hosts -p no:cacheprovider

check: lint  ## the linters, and the tests that start no process, on up to 4 cores; 2 minutes on 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rfE -n logical --maxprocesses 4 --dist worksteal \
	  --no-processes -m "not (ray or cluster or browser)"

lint: $(INSTALLED)  ## ruff, mypy, import-linter, deptry
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

docs: $(INSTALLED)  ## the documentation's site, in build/site; warnings are errors; opens without a server: build/site/index.html
	$(BIN)/python docs/site/build.py

fuzz: $(INSTALLED)  ## what others can write, mutated 5,000 times a usual test; LQRAY_FUZZ=N make fuzz: N times
	LQRAY_FUZZ=$${LQRAY_FUZZ:-5000} $(BIN)/python -m pytest -m fuzz

soak: $(INSTALLED)  ## an hour or two: every act of a sweep fails in every way, then sweeps under random faults
	$(BIN)/python -m tests.faults --pairs 100
	$(BIN)/python -m tests.soak

bench: $(INSTALLED)  ## every benchmark; writes benchmarks/results/
	for script in $(filter-out benchmarks/record.py benchmarks/gradients.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

cuda-check: $(RUNS)  ## compile and link the CUDA kernels (needs nvcc, no GPU); warnings are errors
	$(BIN)/python setup.py -q cuda_check

emulate: $(INSTALLED)  ## execute the CUDA kernels without a GPU, as C++ on an emulated machine (needs g++); 2 minutes
	$(BIN)/python -m tests.ops.emulation

ui: $(RUNS)  ## open the MLflow UI on the recorded runs
	$(BIN)/lqray ui

lock: $(INSTALLED)  ## rewrite the two locks from what .venv holds
	$(BIN)/python deploy/lock.py

clean:  ## remove .venv and caches (recorded runs stay)
	rm -rf $(VENV) build lqray/_native*.so *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
