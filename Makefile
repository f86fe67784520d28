# Everything from a fresh clone, with only python3: `make train`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# A file is one process's, so that what its tests share is built once. tests/conftest.py says which come first.
PROCESSES := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: train test test-fast test-on product soak bench bench-full check compile busy corpus fuzz kill ptx cycles
.PHONY: wheel resolve gpu clean

train: $(STAMP)  ## learn the bundled lyrics: progress, perplexity, generated lines
	$(BIN)/fastcells train $(ARGS)

test: $(STAMP)  ## every test, in a process for each core: ARGS=tests/cpu for those of one folder
	$(BIN)/python -m pytest $(PROCESSES) $(ARGS)

test-fast: $(STAMP)  ## the tests that are not marked slow: under three minutes, with some of every folder
	$(BIN)/python -m pytest $(PROCESSES) -m "not slow" $(ARGS)

test-on:  ## every test on another Python, in an environment of its own: PYTHON=python3.12 VENV=.venv-3.12 (GBs, slow)
	@test "$(VENV)" != .venv || { echo 'give it an environment of its own: VENV=.venv-3.12' >&2; exit 1; }
	$(MAKE) test

product: $(STAMP)  ## layers with every option beside every other, one combination in 40: minutes
	FASTCELLS_PRODUCT=40 $(BIN)/python -m pytest $(PROCESSES) tests/api/test_option_product.py $(ARGS)

soak: $(STAMP)  ## resident memory over thousands of steps of changing shapes, beside torch.nn's: minutes
	$(BIN)/python -m bench.soak $(ARGS)

bench: $(STAMP)  ## this machine, a short selection in minutes: bench/results, its pictures and the README's section
	mkdir -p .benchmarks
	$(BIN)/python -m pytest bench --selection short --benchmark-json=.benchmarks/short.json --benchmark-quiet $(ARGS)
	$(BIN)/python -m bench.report .benchmarks/short.json

bench-full: $(STAMP)  ## every case and contender: hours on a CPU
	mkdir -p .benchmarks
	$(BIN)/python -m pytest bench --selection full --benchmark-json=.benchmarks/full.json --benchmark-quiet $(ARGS)
	$(BIN)/python -m bench.report .benchmarks/full.json --suffix full --no-readme

check: $(STAMP)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

compile: $(STAMP)  ## every Triton kernel for sm_80, sm_90 and sm_100, without a GPU
	$(BIN)/python -m bench.compile $(ARGS)

busy: $(STAMP)  ## training and a bare layer beside processes that spin, against one thread: a few minutes
	$(BIN)/python -m bench.busy --require 1.2 $(ARGS)

corpus: $(STAMP)  ## start-up and memory of training on generated texts of 1 MB to 1 GB: minutes, 5 GB of disk
	$(BIN)/python -m bench.corpus --require 300 8 $(ARGS)

fuzz: $(STAMP)  ## damaged runs, corpora and archives, 3,000 of them: a clear line each
	$(BIN)/python -m tests.support.fuzzed_files --count 3000 $(ARGS)

kill: $(STAMP)  ## training runs that are killed at random moments and resumed, beside uninterrupted ones: minutes
	$(BIN)/python -m tests.support.killed_runs --kills 60 --each 6 $(ARGS)
	$(BIN)/python -m tests.support.killed_runs --signal SIGINT --times 2 --kills 12 --each 4 $(ARGS)

ptx: $(STAMP)  ## every compiled Triton kernel executed on the CPU against float64: minutes. ARGS=--sensitivity
	$(BIN)/python -m bench.ptx $(ARGS)

cycles: $(STAMP)  ## cycles of each Triton kernel's time step, modelled from its machine code: ARGS=--quick
	$(BIN)/python -m bench.cycles $(ARGS)

wheel: $(STAMP)  ## one for every Python from 3.10 on, compiled, for Linux machines without a compiler: dist/*.whl
	rm -rf build dist/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir dist/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist dist/wheel/*.whl
	rm -rf build dist/wheel

resolve: $(STAMP)  ## whether the pins go together on Python 3.10 to 3.13, by metadata alone: nothing is installed
	.ci/resolve $(BIN)/python

gpu:  ## on a machine with an NVIDIA GPU, torch and triton there; results under $$OUT; PART=check|time|stress|table|tune
	bash bench/gpu.sh

clean:
	rm -rf $(VENV) kernels/_cpu*.so build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define VENV_FAILED

fastcells: $(PYTHON) made no environment in $(VENV). Debian and Ubuntu keep what it needs in a package: python3-venv.
endef
define INSTALL_FAILED

fastcells: pip could not install what constraints.txt pins; its own message is above.
  - Is there a network to install from? pip says so by "Retrying" or "Could not fetch".
  - "No matching distribution", "ResolutionImpossible": the pins are what CI runs, on Python 3.11 and Linux x86_64, and
    resolve for Python 3.10 to 3.13; other versions and systems may lack some. `make PYTHON=python3.11 ...` picks one.
  - "No module named pip": $(VENV) is incomplete. Install python3-venv, delete $(VENV) and run make again.
  - Without the pins: `pip install .` in an environment of your own takes the newest versions that fit.
endef
export VENV_FAILED INSTALL_FAILED

$(STAMP): setup.py constraints.txt $(wildcard kernels/cpu/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastcells needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV) || { echo "$$VENV_FAILED" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,plot,onnx]' \
	  || { echo "$$INSTALL_FAILED" >&2; exit 1; }
	touch $(STAMP)
