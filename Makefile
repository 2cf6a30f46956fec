# Each target is explained by the comment behind it; `make help` lists them.
# PYTHON names the interpreter for the set-up; ARGS goes to quorate up, STAGES to the tests; SEED and HOURS to the
# simulation.

.DEFAULT_GOAL := help
.PHONY: help up down reset logs setup test check fmt lock

PYTHON ?=
ARGS ?=
STAGES ?=
SEED ?=
HOURS ?= 1
ROUNDS ?= 10
export PYTHON

python := .venv/bin/python
packages := $(wildcard shared/*/quorate_* registry/quorate_* config-center/quorate_* gateway/quorate_* services/*/quorate_*)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

up: setup ## Start the whole platform here; Ctrl-C stops it (ARGS='--nodes 1' and the like)
	@exec ./quorate up $(ARGS)

down: ## Stop the platform that runs here; its data is kept
	@./quorate down

reset: ## Remove all data of the platform here (asks first; ARGS=--yes does not)
	@./quorate reset $(ARGS)

logs: ## Follow what all parts print (ARGS=node-1 for one of them)
	@./quorate logs --follow $(ARGS)

setup: ## Make .venv from requirements.lock; does nothing when that is done
	@scripts/setup.sh

test: setup ## Run every test, stage by stage (STAGES='unit e2e' for some)
	@$(python) scripts/fetch_peers.py etcd
	@$(if $(filter compiled,$(STAGES)),$(python) scripts/compile_gateway.py)
	@$(python) scripts/run_tests.py $(STAGES)

check: setup ## Lint, formatting, types, import rules and the repository's own rules
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy $(packages) scripts benchmarks
	$(python) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(python) -m pytest -rs tests/tidy

fmt: setup ## Format the code and sort the imports
	$(python) -m ruff check --quiet --fix-only .
	$(python) -m ruff format .

lock: setup ## Write requirements.lock anew from what the members ask for
	$(python) scripts/lock.py

.PHONY: compiled
compiled: setup ## Compile what every request goes through in the gateway; wants a C compiler
	@$(python) scripts/compile_gateway.py

.PHONY: bench
bench: setup ## Measure us beside real peers (ARGS='--full --write', 'gateway --profile'; --help lists the rest)
	@$(python) scripts/fetch_peers.py
	@$(python) scripts/compile_gateway.py --optional
	@exec $(python) -m benchmarks $(ARGS)

.PHONY: sim
sim: setup ## Run a simulated cluster, with everything that can go wrong (SEED=1234; ARGS='--seeds 100', '--full')
	@$(python) -m quorate_simulation $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: campaign
campaign: setup ## Simulate for HOURS, then look for every planted bug (ARGS='--seeds 2000' for a number)
	@$(python) -m quorate_simulation --profile all $(if $(findstring --seeds,$(ARGS)),,--hours $(HOURS)) $(ARGS)
	@cd tests && exec ../$(python) -m sim.find_mutations

.PHONY: faults
faults: setup ## Break real nodes while clients use them, ROUNDS times over (SEED=1 for other faults; root for all)
	@FAULT_ROUNDS=$(ROUNDS) FAULT_SEED=$(or $(SEED),1) $(python) -m pytest -rs tests/faults
