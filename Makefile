# Two commands: `make demo` (CUBE=path for a cube of your own) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/xtec demo $(CUBE)

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q

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
	rm -rf .venv

.PHONY: demo test clean
