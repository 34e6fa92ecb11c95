# make quickstart | report | test | test-all | lint | docs | bench | bench-check | mutation
# Each target first installs into .venv. PYTHON=python3.12 make … chooses the Python. TORCH=cuda|cpu make … chooses the build of
# torch; by default it is cuda if an NVIDIA driver answers. CPU_INDEX=URL is where torch for CPUs is, if pip does not find it.
PYTHON ?= python3
TORCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INSTALLED := $(VENV)/installed-$(VERSION)
PIP := $(BIN)/python -m pip install $(if $(CI),--quiet)

# On Linux the package index has torch for CUDA, which needs gigabytes. The build for CPUs has a version of its own. It is looked for
# where pip is configured to look, then in CPU_INDEX.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_TORCH := --no-deps 'torch==$(TORCH_VERSION)+cpu'
FIND_CPU_TORCH = $(PIP) --quiet --quiet --quiet $(CPU_TORCH) 2>/dev/null || \
  $(if $(CPU_INDEX),$(PIP) --index-url $(CPU_INDEX) $(CPU_TORCH) ||) \
  { echo "pip finds no torch for CPUs: set CPU_INDEX to the --index-url that pytorch.org shows for pip and CPU, or install torch for CUDA (gigabytes): TORCH=cuda make $(MAKECMDGOALS)" >&2; exit 1; }

# Three processes, since many tests wait for a server or a kill. All tests of a file run in the same one, because they share what
# the file makes once.
WORKERS := -n 3 --dist loadfile

.PHONY: install quickstart report test test-all lint docs bench bench-check mutation clean

install: $(INSTALLED)

# The file's name holds the Python version, so another PYTHON makes a new environment.
$(INSTALLED): constraints.txt setup.py pyproject.toml
	@case "$(VERSION)" in 3.11|3.12|3.13) ;; *) \
	  echo "PYTHON must be Python 3.11, 3.12 or 3.13, but $(PYTHON) is '$(VERSION)': try PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1;; esac
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed to build fairseq: install g++ (or clang++)" >&2; exit 1; }
	@[ -e $(INSTALLED) ] || { echo "[1/4] $(VENV), with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "[2/4] torch $(TORCH_VERSION) ($(TORCH)), and what fairseq's build needs"
	@case "$(TORCH)" in \
	  cuda) ;; \
	  cpu) $(FIND_CPU_TORCH) ;; \
	  *) echo "TORCH must be cpu or cuda, but is '$(TORCH)'" >&2; exit 1;; esac
	@# fairseq's build imports torch. An isolated build would download a second torch of several gigabytes.
	$(PIP) --constraint constraints.txt torch numpy cython setuptools wheel
	@echo "[3/4] fairseq, which takes some minutes to compile, and everything else"
	env -u CUDA_HOME $(PIP) --no-build-isolation --constraint constraints.txt --editable '.[dev]'
	@# fairseq requires torchaudio, but imports it for speech only. A build that doesn't fit torch would break the import of transformers.
	@$(BIN)/python -c 'import torchaudio' 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchaudio
	@echo "[4/4] installed: $$($(BIN)/imitkd --version). Use it by '. $(BIN)/activate'"
	@touch $(INSTALLED)

quickstart: install
	examples/quickstart/run.sh

# Compares the quickstart's models and makes a page: examples/quickstart/run/report.html
report: quickstart
	examples/quickstart/report.sh

test: install
	$(BIN)/python -m pytest -q $(WORKERS)

test-all: install
	$(BIN)/python -m pip install --quiet --no-deps annalog==1.0.6
	$(BIN)/python -m pytest -q $(WORKERS) -m 'slow or not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck --external-sources --source-path SCRIPTDIR benchmarks/*.sh examples/*.sh examples/*/*.sh

# The site: docs/build/index.html. A link to nothing, and any other warning, is an error. Always from the beginning (-E):
# autosummary finds no pages in a build that goes on.
docs: install
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs . docs/build

bench: install
	$(BIN)/python benchmarks/update_cost.py

# Fails if an update does more work than before. It counts operators, floating point operations and elements, and measures no time.
bench-check: install
	$(BIN)/python benchmarks/work_check.py
	$(BIN)/python benchmarks/gpu_counts.py

# Do the tests notice small changes of the code? mutmut generates the changes; its other requirements are not used.
mutation: install
	$(BIN)/python -m pip install --quiet --no-deps mutmut==3.8.1 libcst==1.9.0
	$(BIN)/python benchmarks/mutation.py --sample 70

clean:
	rm -rf $(VENV) build *.egg-info
