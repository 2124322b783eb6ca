# toolpolicy: `make` lists what there is to do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/.locked: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "toolpolicy needs Python 3.11 or newer: set PYTHON=/path/to/python3.11")'
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -q --require-hashes -r requirements/dev.txt
	@touch $@

$(BIN)/.ready: $(BIN)/.locked pyproject.toml
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: install
install: $(BIN)/.ready ## Create .venv with everything pinned and hashed

.PHONY: lint
lint: $(BIN)/.ready ## ruff, pyright (strict) and the layer contract
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { echo "formatting differs: run 'make format'"; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --warnings --pythonpath $(BIN)/python | { grep -v '^0 errors' || true; }; exit $${PIPESTATUS[0]}
	@out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out"; exit 1; }

.PHONY: format
format: $(BIN)/.ready ## Format the code and apply ruff's safe fixes
	@$(BIN)/ruff check -q --fix . || true
	@$(BIN)/ruff format -q .

.PHONY: test
test: lint ## Lint, type check and every test but those on a node (first run: builds Kubernetes, 8 to 20 minutes)
	@$(BIN)/pytest -n 2 --dist loadgroup -m "not e2e"

.PHONY: e2e
e2e: $(BIN)/.ready ## End to end on a real Kubernetes node of this machine (root on Debian; docs/testing.md)
	@$(BIN)/pytest -m e2e tests

.PHONY: test-quick
test-quick: $(BIN)/.ready ## The tests that need nothing but Python (under a minute)
	@$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

.PHONY: soak
soak: $(BIN)/.ready ## The long ones: more examples of every law, and memory over 200,000 calls
	@TOOLPOLICY_EXAMPLES=2000 $(BIN)/pytest -n 2 --dist loadgroup tests/unit/policy tests/property
	@$(BIN)/python bench/proxy/growth.py

.PHONY: bench
bench: $(BIN)/.ready ## Measure the sidecar beside its baselines (quiet machine, 2 cores)
	@$(BIN)/python bench/policy/bench.py
	@$(BIN)/python bench/proxy/run.py

COMPILED := .cache/compiled
$(COMPILED)/.built: requirements/build.txt tools/compiled.py tools/mypyc.ini $(shell find sidecar -name '*.py')
	@$(PYTHON) -m venv --clear .cache/compile-venv
	@.cache/compile-venv/bin/pip install -q --require-hashes -r requirements/build.txt
	@echo "compiling into $(COMPILED) (minutes) ..."
	@.cache/compile-venv/bin/python tools/compiled.py $(COMPILED) > .cache/compiled.log 2>&1 || { tail -20 .cache/compiled.log; exit 1; }
	@touch $@

.PHONY: compiled
compiled: $(COMPILED)/.built ## The way of a call compiled to C (optional; needs a C compiler)

.PHONY: test-compiled
test-compiled: $(BIN)/.ready $(COMPILED)/.built ## The quick tests on the compiled build
	@PYTHONPATH=$(CURDIR)/$(COMPILED) TOOLPOLICY_EXPECT_COMPILED=1 $(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

.PHONY: bench-compiled
bench-compiled: $(BIN)/.ready $(COMPILED)/.built ## As bench, for the compiled sidecar
	@PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/python bench/proxy/run.py --out bench/proxy/results-compiled.json

.PHONY: lock
lock: $(BIN)/.ready ## Pin and hash requirements/*.in anew
	@$(PYTHON) requirements/lock.py

.PHONY: demo
demo: $(BIN)/.ready ## A real MCP server behind a real policy, call by call
	@$(BIN)/python -m demo.run

.PHONY: generate
generate: $(BIN)/.ready ## Write the CRDs and the policy reference anew, from the models
	@$(BIN)/toolpolicy schema --format crd --kind ToolPolicy > manifests/crds/toolpolicy.dev_toolpolicies.yaml
	@$(BIN)/toolpolicy schema --format crd --kind ClusterToolPolicy > manifests/crds/toolpolicy.dev_clustertoolpolicies.yaml
	@$(BIN)/toolpolicy schema --format reference > docs/reference/policy.md
