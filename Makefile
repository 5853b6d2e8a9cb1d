# Two commands set everything up: `make demo` and `make test`. Both build .venv first if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f)

# Threads that spin while they wait slow each other down when several test processes share the cores.
test test-all: export OMP_WAIT_POLICY = passive

.PHONY: demo test test-all lint format bench sass instructions sanitize clean install gpu

install: $(READY)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llc_fast needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(READY): $(BIN)/python $(SOURCES)
	$(PIP) install -q -c constraints.txt torch numpy pybind11 scikit-build-core cmake ninja
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev,triton]'
	# The redirect names every module; the paths beside it would put the checkout and its parent on sys.path.
	$(BIN)/python -c "import pathlib, sysconfig; \
	p = pathlib.Path(sysconfig.get_path('purelib'), '_editable_skbc_llc_fast.pth'); \
	p.write_text(p.read_text().splitlines()[0] + chr(10))"
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The peers by name: the extra itself would build the package again. QUICK=1: smaller sizes.
bench: $(READY)
	$(PIP) install -q -c constraints.txt blackjax devinterp posteriors
	$(BIN)/llc-fast bench all --out bench_out $(if $(QUICK),--quick)

# truth-chain, truth-bias, ...: figures against what is known exactly, with PASS or FAIL. QUICK=1: smaller sizes.
truth-%: tests/truth/%.py $(READY)
	$(BIN)/python $< $(if $(QUICK),--quick)

truth-devinterp: truth-against_devinterp ;

sass: $(READY)
	$(BIN)/python -m llc_fast.benchmarks.sass

instructions: $(READY)
	$(BIN)/python -m llc_fast.benchmarks.instructions

# Without a GPU it compiles the kernels and tries its code on the CPU. OUT=folder
gpu: $(READY)
	bash benchmarks/gpu.sh $(or $(OUT),gpu_out)

sanitize: $(READY)
	$(BIN)/python tests/sanitize/check.py

clean:
	rm -rf $(VENV) build dist demo_out bench_out gpu_out .pytest_cache .mypy_cache .ruff_cache
