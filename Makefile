# Everything from a fresh clone, with only python3: `make train`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: train test soak bench bench-full check compile gpu clean

train: $(STAMP)  ## learn the bundled lyrics: progress, perplexity, generated lines
	$(BIN)/fastcells train $(ARGS)

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest $(ARGS)

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

gpu:  ## on a machine with an NVIDIA GPU, torch and triton already there; results under $$OUT; PART=tests|table|tune
	bash bench/gpu.sh

clean:
	rm -rf $(VENV) kernels/_cpu*.so build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.py constraints.txt $(wildcard kernels/cpu/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastcells needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,plot]' || { \
	  echo "The install failed; pip's reason stands above. constraints.txt holds the versions that CI runs, for Linux and"; \
	  echo "Python 3.10 to 3.13: check the network and '$(PYTHON) --version', then 'make clean' and try again."; \
	  echo "'pip install .' in an environment of your own takes other versions."; exit 1; }
	touch $(STAMP)
