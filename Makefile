# Every target but gpu and bench-kernels makes .venv itself when it is missing. Needs Python 3.12 or newer and
# about 6 GB of disk.
PYTHON := $(shell for p in python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# One thread a process: the tests start several ranks, and the machine may have 2 cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test test-long test-mutations check gate bench bench-data bench-kernels gpu clean-quickstart

.venv: .venv/.done
.venv/.done: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.12 or newer on the PATH; install one" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: .venv/.done
	$(BIN)/python examples/quickstart/run.py

clean-quickstart:
	rm -rf runs/quickstart

# Two files of tests at a time; a file's tests stay together, because some share runs of several ranks.
test: .venv/.done
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile

test-long: .venv/.done
	$(BIN)/python -m pytest -m long

# Each planted bug has to be caught by a test of the kernels: about 8 minutes on two cores, no GPU.
test-mutations: .venv/.done
	$(BIN)/python tests/mutations/run.py --jobs 2

check: .venv/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=kernels:kernels/bench $(BIN)/mypy --explicit-package-bases kernels/bench
	$(BIN)/python -m pytest tests/test_house.py

# Compiles every kernel for every chip, with none of them here.
gate: .venv/.done
	$(BIN)/python kernels/bench/resources.py

bench: bench-data
	$(BIN)/python tools/bench_train.py

# Packing, then samples, beside their peers. BENCH_DATA="--megatron-lm DIR --peers-python PYTHON" adds those not
# installed here, --corpus FILE.jsonl takes a real corpus; the one made on the spot is kept in runs/bench-data
# (0.6 GB). BENCH_SAMPLES=--full opens 200 million documents instead of 20.
bench-data: .venv/.done
	$(BIN)/python tools/bench_data $(BENCH_DATA)
	$(BIN)/python tools/bench_data/samples.py $(BENCH_SAMPLES)

# A GPU image's own torch is what is to be measured, so these two install nothing; they use .venv where it is.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

bench-kernels:
	@test -n "$(GPU_PYTHON)" || { echo "make: no Python 3.12 or newer; set GPU_PYTHON" >&2; exit 2; }
	$(GPU_PYTHON) tools/bench_kernels.py

gpu:
	@test -n "$(GPU_PYTHON)" || { echo "make: no Python 3.12 or newer; set GPU_PYTHON" >&2; exit 2; }
	$(GPU_PYTHON) tools/gpu_check.py
