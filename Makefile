# `make demo` and `make test` do everything on a machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := langchain_rwkv_state examples benchmarks tests

.PHONY: demo test lint typing unit integration gpu bench format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: lint typing unit integration

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typing: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit_tests --disable-socket --allow-unix-socket -q

integration: $(VENV)/.dev
	$(BIN)/python -m pytest tests/integration_tests -q

gpu: $(VENV)/.dev
	$(BIN)/python -c "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'make gpu needs a CUDA device')"
	$(BIN)/python -m pytest tests -q -m cuda
	for each in conversation speed crowd; do $(BIN)/python -m benchmarks.$$each --device cuda || exit 1; done

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run_all

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, found ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . \
		--group test --group lint --group typing --group bench
	touch $@ $(VENV)/.demo
