# Everything a developer runs, under one name each; CI calls the same ones. `make` alone lists them.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt fmt-check lint type imports bench chaos drills ranks-drill scale smoke docs clean

help: ## List these recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into .venv, a minute or two ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev,bench,studies]'
	@touch $@

demo: $(INSTALLED) ## The whole loop on this machine, with a page to watch it learn; Ctrl-C ends it
	$(BIN)/freshrank up --config configs/demo.yaml

test: $(INSTALLED) ## All tests; KAFKA_HOME and FRESHRANK_RANKLENS add those on real Kafka and real data
	$(BIN)/pytest -rs -n 2

check: fmt-check lint type imports test ## All that must hold before a commit: format, lint, types, imports, tests

fmt: $(INSTALLED) ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fmt-check: $(INSTALLED)
	$(BIN)/ruff format --check .

lint: $(INSTALLED) ## Lint
	$(BIN)/ruff check .

type: $(INSTALLED) ## Check the types, strictly
	$(BIN)/mypy

imports: $(INSTALLED) ## Check who imports whom (.importlinter)
	$(BIN)/lint-imports

bench: $(INSTALLED) ## Measure the goals' figures, short form, into benchmarks/results/latest.json
	$(BIN)/python -m benchmarks

chaos: $(INSTALLED) ## Torment joiners on real Kafka (KAFKA_HOME), then verify every label; make chaos SEEDS=20
	$(BIN)/python -m tests.chaos --seeds $(or $(SEEDS),20)

drills: $(INSTALLED) ## Break one thing after the other on real Kafka (KAFKA_HOME) and Redis, under users who check every answer
	$(BIN)/python -m tests.drills --json benchmarks/results/drills.json

scale: $(INSTALLED) ## Joiners and rankers on hosts of their own (namespaces), moved, killed, cut off; needs root, KAFKA_HOME, haproxy
	$(BIN)/python -m tests.scale

ranks-drill: $(INSTALLED) ## Kill ranks of a training job 20 times, then compare with one that was left alone
	$(BIN)/python -m tests.drills.ranks --json benchmarks/results/ranks_drill.json

smoke: ## Run docker-compose.yml: everything healthy, a ranking that changes, the trainer killed; needs Docker
	$(PYTHON) deploy/smoke.py $(SMOKE)

docs: $(INSTALLED) ## Write the generated tables of docs/ anew from the code
	$(BIN)/python -m freshrank.docs

clean: ## Remove the virtual environment, caches, build outputs and the demo's data
	rm -rf .venv build dist run .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
