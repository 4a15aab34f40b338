# Two commands suffice on a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread for each numerical library: the tests run in parallel, and pools that spin against each other are slower.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all check bench bench-quick format wheel clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# torch first and exactly: a range may pull another, far larger build
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@touch $(READY)

setup: $(READY)  ## Garrison with all extras in .venv, and nothing more

demo: $(READY)  ## the whole way on real data: train, harden, seal, serve, ask, attack, report (out/demo)
	OMP_NUM_THREADS=2 $(BIN)/python examples/fashion_mnist/demo.py

check: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check  ## what CI runs
	$(BIN)/pytest -m "not slow" -n 2 --dist loadgroup --timeout 300

test-all: check  ## also the effect tests, which take minutes
	$(BIN)/pytest -n 2 --dist loadgroup --timeout 3600

bench: $(READY)  ## the figures of docs/benchmarks.md; ONLY=serving,sealed for some parts, SKIP=theft for all others
	$(BIN)/python -m benchmarks.bench --only "$(ONLY)" --skip "$(SKIP)"

bench-quick: $(READY)  ## 2 minutes: Garrison's servers against kept ratios; fails if they became slower
	$(BIN)/python -m benchmarks.serving --quick

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache
