# One target a chore, used by people and by CI alike.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run up down test test-long check format docs bench install clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/.base ## make .venv with what `make run` needs

# The stamps are newer than what they were installed from, so a second call does nothing.
.venv/.base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.test: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[stack,test]'
	@touch $@

.venv/.stack: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[stack]'
	@touch $@

.venv/.ray: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@touch $@

.venv/.docs: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.venv/.peers: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	@touch $@

run: .venv/.base ## fetch the data and run the whole chain
	$(BIN)/clearwell data pull
	$(BIN)/clearwell run

up: .venv/.stack ## start the servers of the stack, and wait until they answer
	$(BIN)/clearwell up

down: .venv/.stack ## stop them
	$(BIN)/clearwell down

test: .venv/.test ## run the test suite
	$(BIN)/clearwell data pull
	$(BIN)/python -m pip check
	$(BIN)/python -m pytest -q

test-long: .venv/.test .venv/.ray ## run the tests that take minutes each: servers killed, deployments, Ray, a browser
	$(BIN)/clearwell data pull
	$(BIN)/python -m pytest -q -m long

check: .venv/.test ## style, types, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: .venv/.test ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.docs ## build the documentation into site/
	$(BIN)/python -m docs.build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/.peers ## time and memory of the main job, overhead, warm rerun
	$(BIN)/clearwell data pull
	$(BIN)/python -m benchmarks.main_job
	$(BIN)/python -m docs.build --readme

clean: ## remove everything a run made; data, environment and sources stay
	rm -rf .clearwell reports site
