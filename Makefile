# `make demo` (CUBE=path for a cube of your own), `make test`, and `make fuzz` (CASES=number, SEED=number), which
# takes a quarter of an hour; `make docs` writes the documentation's pages to site/.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/xtec demo $(CUBE)

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist loadfile

# Hostile input: seeded cases, then runs guided by coverage where atheris can be installed.
CASES ?= 100000
SEED ?= 1
fuzz: .venv/tested
	$(BIN)/pip install -q -c constraints.txt -e ".[fuzz]" || echo "atheris cannot be installed here"
	$(BIN)/python -m fuzz --cases $(CASES) --seed $(SEED)
	$(BIN)/python -m fuzz.coverage

# --strict: a page that is missing, a link that leads nowhere and a name that does not exist are errors.
docs: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

# The oracle packages pin an older numpy in their metadata but run on this one, hence --no-deps.
.venv/tested: .venv/installed requirements-oracle.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	$(BIN)/pip install -q --no-deps -r requirements-oracle.txt
	touch $@

clean:
	rm -rf .venv site

.PHONY: demo test fuzz docs clean
