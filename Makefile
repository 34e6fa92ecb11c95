# make quickstart | report | test | test-all | lint | bench | bench-check     each sets up .venv first; PYTHON=python3.12 make … chooses the Python
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INSTALLED := $(VENV)/installed-$(VERSION)

# Two processes, a file's tests in one of them: each has its own teacher trained for the tests that need one.
WORKERS := -n 2 --dist loadfile

.PHONY: install quickstart report test test-all lint bench bench-check clean

install: $(INSTALLED)

# The stamp carries the Python version, so that another PYTHON makes a new environment.
$(INSTALLED): constraints.txt setup.py pyproject.toml
	@case "$(VERSION)" in 3.11|3.12|3.13) ;; *) \
	  echo "PYTHON must be Python 3.11, 3.12 or 3.13, but $(PYTHON) is '$(VERSION)': try PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1;; esac
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed to build fairseq: install g++ (or clang++)" >&2; exit 1; }
	[ -e $(INSTALLED) ] || $(PYTHON) -m venv --clear $(VENV)
	@# fairseq's build needs torch beside it; in pip's isolated build it would fetch a second one of gigabytes.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy cython setuptools wheel
	env -u CUDA_HOME $(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

quickstart: install
	examples/quickstart/run.sh

# The quickstart's models side by side, and one page of it: examples/quickstart/run/report.html
report: quickstart
	examples/quickstart/report.sh

test: install
	$(BIN)/python -m pytest -q $(WORKERS)

test-all: install
	$(BIN)/python -m pytest -q $(WORKERS) -m 'slow or not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources --source-path SCRIPTDIR benchmarks/*.sh examples/*.sh examples/*/*.sh

bench: install
	$(BIN)/python benchmarks/update_cost.py

# Has an update come to do more work than it did? Counts operators, floating point operations and elements, no time.
bench-check: install
	$(BIN)/python benchmarks/work_check.py

clean:
	rm -rf $(VENV) build *.egg-info
