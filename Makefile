# `make quickstart` and `make test` are all that a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYVERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
LOCK := requirements/$(PYVERSION).txt
STAMP := $(VENV)/.installed-$(PYVERSION)

.PHONY: quickstart test lint format lock clean

quickstart: $(STAMP)
	$(BIN)/python -m dml_jax.quickstart --workdir=runs/quickstart

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions and hashes only: no index is named, so any mirror that serves the same files will do.
$(STAMP): $(LOCK) pyproject.toml
	@test -f $(LOCK) || { echo "There is no lock for $(PYVERSION): run with PYTHON=python3.11 or PYTHON=python3.12."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock:
	for v in 3.11 3.12; do uv pip compile --quiet --upgrade --python-version $$v --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --extra test pyproject.toml \
	  -o requirements/py$$(echo $$v | tr -d .).txt; done

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache build *.egg-info
