# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs in .venv first; see `make help`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
# A file's tests share its fixtures, so they stay together; files are dealt out in the order of `tests/suite_plugin.py`.
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-all lint

help:
	@echo "make setup      install the package and its tools into .venv"
	@echo "make demo       synthetic videos, two training stages, evaluation, an overlay video; about 10 minutes on 2 cores"
	@echo "make test       the tests of every change; minutes on 2 cores"
	@echo "make test-slow  the tests that take longer or need a browser; .ci/run runs them too"
	@echo "make test-all   all tests, with those against recordings where THEMASK_GOLDEN_DIR names their folder"
	@echo "make lint       ruff and mypy"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing PyTorch, Transformers and the package into .venv: about 5 GB, one to five minutes ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(OFFLINE) $(BIN)/themask demo

test: $(STAMP)
	$(PYTEST)

test-slow: $(STAMP)
	$(PYTEST) -m 'slow and not nightly'

test-all: $(STAMP)
	$(PYTEST) -m ''

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
