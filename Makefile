# One command each; all of them need only python3 (3.11+) with its venv module.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-units test-kernel check coverage soak mutants docs generate screenshots dist bench clean

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable .
	touch $@

.venv/ready: .venv/installed
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

demo: .venv/installed  ## show the main job on devices that are programs
	@$(BIN)/usb-remote demo

test: test-units test-kernel  ## run the tests; those that lack root or Debian packages say so and are skipped

test-units: .venv/ready  ## without virtual machines; with MUTANTS_REACH=FILE it notes who reaches what
	@$(BIN)/python -m pytest $(if $(MUTANTS_REACH),-p tools.mutants.recorder) -n 4 --dist worksteal \
		-m "not docs and not soak" --ignore tests/kernel tests

test-kernel: .venv/ready
	@$(BIN)/pytest -n 3 --dist load --maxschedchunk 1 -m "not soak" tests/kernel

check: .venv/ready  ## format, lint, types, imports, docs
	$(BIN)/ruff format --check src tests bench tools docs/conf.py
	$(BIN)/ruff check src tests bench tools docs/conf.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --dist worksteal -m docs --ignore tests/kernel --ignore tests/network tests

coverage: .venv/ready  ## what the tests that need no root reach; fails below the floor in pyproject.toml
	@$(BIN)/pytest -q -n 4 --dist worksteal --ignore tests/kernel --ignore tests/network \
		--cov --cov-report=term:skip-covered tests

soak: export USB_REMOTE_SEED := $(or $(SEED),$(shell date +%s))
soak: export USB_REMOTE_SOAK := $(or $(MINUTES),10)
soak: .venv/ready  ## the long and the random tests, another day each time; SEED=… repeats one
	@$(BIN)/pytest -v -m soak tests
	@$(BIN)/pytest -v tests/kernel/test_soak.py

mutants: .venv/ready  ## plant 300 small faults in the core, one at a time: do the tests notice?
	@$(BIN)/python -m tools.mutants $(if $(MUTANTS),--count $(MUTANTS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(AT_LEAST),--at-least $(AT_LEAST)) $(if $(SINCE),--changed-since $(SINCE)) $(FILES)

docs: .venv/ready  ## build the documentation as a site: site/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env docs site
	@echo "open site/index.html"

generate: .venv/ready  ## write the references of commands and keys, the man page and the completions anew
	@$(BIN)/python -m tools

screenshots: .venv/ready  ## draw docs/images/*.svg anew from real output; needs root
	@$(BIN)/python -m tools.screenshots

dist: .venv/ready  ## wheel and sdist of the last commit in dist/, built twice, installed and tried
	@$(BIN)/python -m tools.dist

bench: .venv/ready  ## measure against the alternatives; docs/explanations/performance.md says what
	@$(BIN)/python -m bench

clean:
	rm -rf .venv .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .mutants dist build site
