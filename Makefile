# One command each; all of them need only python3 (3.11+) with its venv module.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[dev]'
	touch $@

demo: .venv/ready  ## show the main job on devices that are programs
	@$(BIN)/usb-remote demo

test: .venv/ready  ## run the tests; those that lack root or Debian packages say so and are skipped
	@$(BIN)/pytest

check: .venv/ready  ## format, lint, types, imports, docs
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_docs.py

bench: .venv/ready  ## measure against the alternatives; docs/explanations/performance.md says what
	@$(BIN)/python -m bench

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
