# `make demo` and `make test` need Python 3.10+, pip, a C++ compiler and make; the rest they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
ALONE := multiproc or ray or hosts
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

.PHONY: demo test lint types unit packages clean

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

# Tests that start processes, hosts or clusters have the machine for themselves; the others share its cores.
unit: .venv/installed packages
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile -m "not ($(ALONE))"
	$(BIN)/pytest -m "$(ALONE)"

# Tests over several hosts need these programs. Root on Debian gets them; elsewhere those tests skip and say why.
packages:
	@for program in ip sshd pdsh; do command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq iproute2 openssh-server pdsh >/dev/null; fi

clean:
	rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache
