# `make quickstart` and `make test` are all that a newcomer needs; both set up .venv first. `make docs` builds the site
# in an environment of its own: it reads the source and imports none of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYVERSION := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
LOCK := requirements/$(PYVERSION).txt
STAMP := $(VENV)/.installed-$(PYVERSION)
DOCS_VENV := .venv-docs
DOCS_LOCK := requirements/docs.txt
DOCS_STAMP := $(DOCS_VENV)/.installed-$(PYVERSION)

.PHONY: quickstart test conformance docs pictures lint format lock clean

quickstart: $(STAMP)
	$(BIN)/python -m dml_jax.quickstart --workdir=runs/quickstart

# A quarter of the laws over every loss and miner, others in every run; DML_JAX_TESTS_CASES=laws takes all (tests/draws.py).
test: $(STAMP)
	DML_JAX_TESTS_CASES=$${DML_JAX_TESTS_CASES:-some} $(BIN)/python -m pytest

# Measures every figure of docs/conformance.md, conformance_miners.md and cross_table.md again: hours.
conformance: $(STAMP)
	DML_JAX_TESTS_CASES=all $(BIN)/python -m pytest tests/losses/test_laws.py tests/losses/test_golden.py \
	  tests/losses/test_conformance.py tests/losses/test_cross.py \
	  tests/miners tests/losses/test_relations.py

# Warnings are errors; then every link and resource of the built pages is followed, none of which may need a network.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --strict --clean
	$(DOCS_VENV)/bin/python docs/tools/check.py site
	@echo "Written to site/: open site/index.html"

# The pictures of the catalogue of losses, which are committed: this needs the library, `make docs` does not.
pictures: $(STAMP)
	$(BIN)/python docs/tools/pictures.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions and hashes only: no index is named, so any mirror that serves the same files will do.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Of a Python that has none.
requirements/py%.txt:
	@echo "There is no lock for $$($(PYTHON) --version) ($@): accepted is PYTHON=python3.11, python3.12 or python3.13,"
	@echo "as in: make quickstart PYTHON=python3.12"
	@exit 1

$(DOCS_STAMP): $(DOCS_LOCK)
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --require-hashes -r $(DOCS_LOCK)
	@touch $@

lock:
	for v in 3.11 3.12 3.13; do uv pip compile --quiet --upgrade --python-version $$v --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --extra test pyproject.toml \
	  -o requirements/py$$(echo $$v | tr -d .).txt; done
	@# uv drops the marker of pyproject.toml: this package has no wheel for Linux on ARM.
	sed -i.bak "s/^cykooz-resizer==[^ ;]*/& ; sys_platform != 'linux' or platform_machine != 'aarch64'/" requirements/py*.txt
	rm requirements/py*.txt.bak
	$(PYTHON) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
	  print(*p['project']['optional-dependencies']['docs'], sep='\n')" \
	  | uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links - -o $(DOCS_LOCK)

clean:
	rm -rf $(VENV) $(DOCS_VENV) site runs .pytest_cache .mypy_cache .ruff_cache build *.egg-info
