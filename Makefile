# Two commands on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
WORKERS ?= 3
BIN := $(VENV)/bin
# torch comes first, pinned: whatever else is installed then finds it there. The rest builds against it.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests that wait run beside tests that compute, a file in one process; with WORKERS=0 all in this one.
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
TORCHRUN := $(BIN)/torchrun --standalone --nproc-per-node=$(RANKS)
export OMP_NUM_THREADS ?= 1
# Tests start Python some hundred times; without compiled modules each start takes 0.4 s more.
test test-all quick: export PYTHONDONTWRITEBYTECODE =

# One line in place of pip's pages on versions that do not go together.
CHECK_PYTHON := -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "trainkit needs Python 3.11 to 3.13, and %s is %d.%d; type: make $(MAKECMDGOALS) PYTHON=python3.11 VENV=.venv311" % (sys.executable, v[0], v[1]))'
ACTIVATE := "the commands of README.md are in $(BIN); once in each shell: source $(BIN)/activate"

.DEFAULT_GOAL := help
.PHONY: help train gan translation test test-all quick lint docs format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  settings: RANKS=2 processes, WORKERS=3 tests at a time, PYTHON=python3, VENV=.venv"

train: $(VENV)/.installed ## install, then train BERT on built-in documentation, $(RANKS) processes (about 6 minutes)
	$(TORCHRUN) launch/train.py experiment=bert_quickstart
	@echo $(ACTIVATE)

gan: $(VENV)/.installed ## install, then grow a GAN on built-in letters, $(RANKS) processes (about 7 minutes)
	$(TORCHRUN) launch/train.py experiment=glyphs
	@echo $(ACTIVATE)

translation: $(VENV)/.installed ## install, then learn to outline letters without pairs, $(RANKS) processes (about 6 minutes)
	$(TORCHRUN) launch/train.py experiment=outlines
	@echo $(ACTIVATE)

test: $(VENV)/.installed-dev ## install, then run the tests, $(WORKERS) at a time
	$(PYTEST) --durations=20 -m "not nightly"

test-all: $(VENV)/.installed-dev ## the same with nightly cases, 300 randomly drawn runs in place of 40, and coverage
	TRAINKIT_DRAWS=300 $(PYTEST) --durations=20 --cov --cov-report=term --cov-report=html:build/coverage

quick: $(VENV)/.installed-dev ## run the tests that take seconds
	$(PYTEST) -m "not slow and not nightly"

lint: $(VENV)/.installed-dev ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev ## build the documentation into build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open build/site/index.html"

format: $(VENV)/.installed-dev ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment and what builds left; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) $(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@$(BIN)/python $(CHECK_PYTHON)
	@echo "installing torch ..."
	$(PIP_INSTALL) torch numpy setuptools wheel
	@touch $@

$(VENV)/.installed: setup.py pyproject.toml constraints.txt $(VENV)/.torch
	@echo "installing trainkit, and compiling its layers: a minute or two ..."
	$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: setup.py pyproject.toml constraints.txt $(VENV)/.torch
	@echo "installing trainkit with what its tests need, and compiling its layers: some minutes ..."
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/.installed
