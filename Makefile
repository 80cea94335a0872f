# `make demo` and `make test` need Python 3.10+, pip, a C++ compiler and make; the rest they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

.PHONY: demo test lint types unit clean

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/dmd demo

test: lint types unit

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

unit: .venv/installed
	$(BIN)/pytest

clean:
	rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache
