# Everything that is done with this repository. `make help` lists it.

COTENANT_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cotenant
export COTENANT_CACHE

# uv from PATH, else one of our own in the cache.
UV := $(or $(shell command -v uv 2>/dev/null),$(COTENANT_CACHE)/uv/bin/uv)
RUN := $(UV) run --locked
CLUSTER := $(RUN) python -m tests.cluster

# What a real node needs is built ahead where it can run at all.
NODE := $(if $(and $(filter 0,$(shell id -u)),$(shell command -v runc),$(shell command -v gcc)),--node)

.DEFAULT_GOAL := help
.PHONY: help setup check test test-node test-gpu demo cluster cluster-down cluster-clean crds chart bench soak chaos fmt clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# pip --target also works where the system's Python is "externally managed"; venv is for those without pip.
$(COTENANT_CACHE)/uv/bin/uv:
	@command -v python3 >/dev/null || { echo "install python3, or uv: https://docs.astral.sh/uv/" >&2; exit 1; }
	@echo "getting uv into $(COTENANT_CACHE)/uv"
	@python3 -m pip install --quiet --disable-pip-version-check --target "$(COTENANT_CACHE)/uv" uv 2>/dev/null \
	  || { python3 -m venv "$(COTENANT_CACHE)/uv" && "$(COTENANT_CACHE)/uv/bin/pip" install --quiet uv; } \
	  || { echo "uv could not be installed: install python3-pip or python3-venv, or uv itself: https://docs.astral.sh/uv/" >&2; exit 1; }

setup: | $(UV) ## make the Python environment in .venv
	@$(UV) sync --locked

check: | $(UV) ## lint, format, types, import contracts, generated files, chart
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) cotenant crds --check
	diff -r crds charts/cotenant/files/crds
	$(CLUSTER) helm lint --strict charts/cotenant --values charts/cotenant/ci/lint-values.yaml

test: | $(UV) ## all tests that need no GPU; a real node too, where this machine can hold one
	@$(CLUSTER) build $(NODE) >/dev/null
	@# a real node mostly waits: its tests go beside the others, and are shown after them
	@log=$$(mktemp); $(RUN) pytest -m "not gpu and not soak" tests/node >$$log 2>&1 & node=$$!; \
	trap 'kill $$node' INT TERM; \
	$(RUN) pytest -m "not gpu and not soak" --ignore=tests/node; rest=$$?; \
	wait $$node; node=$$?; echo; echo "the tests on a real node:"; cat $$log; rm -f $$log; exit $$((rest || node))

test-node: | $(UV) ## only the tests on a real kubelet (root, Linux)
	$(RUN) pytest -m node tests/node

test-gpu: | $(UV) ## the tests on a real NVIDIA GPU
	$(RUN) --extra vllm pytest -m gpu tests/gpu

demo: | $(UV) ## a simulated cluster, the controller and two models on one GPU, as a picture
	$(RUN) python -m tests.demo

cluster: | $(UV) ## start a real control plane on loopback and leave it running
	@$(CLUSTER) up

cluster-down: | $(UV) ## end it
	@$(CLUSTER) down

cluster-clean: | $(UV) ## end it and drop Go's caches; the built programs stay (ALL=1 drops them too)
	@$(CLUSTER) clean $(if $(ALL),--all)

crds: | $(UV) ## write crds/*.yaml from the models, and the chart's copy
	$(RUN) cotenant crds --dir crds
	@$(MAKE) --no-print-directory chart

chart: ## copy crds/ into the chart
	mkdir -p charts/cotenant/files/crds
	rm -f charts/cotenant/files/crds/*.yaml
	cp crds/*.yaml charts/cotenant/files/crds/

bench: | $(UV) ## 1,000 models onto 1,000 GPUs: seconds, pods/s, writes
	$(RUN) python -m tests.bench

soak: | $(UV) ## 10,000 random histories of a cluster in memory against the core (HISTORIES=n, FIRST=seed)
	$(RUN) python -m tests.soak --histories $(or $(HISTORIES),10000) --first $(or $(FIRST),0)

chaos: | $(UV) ## a busy history with everything killed at random
	$(RUN) python -m tests.chaos

fmt: | $(UV) ## format, and fix what ruff can
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

clean: ## drop what tools left in the tree
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find operator tests -name __pycache__ -type d -prune -exec rm -rf {} +
