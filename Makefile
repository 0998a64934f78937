# What one can do here: `make help`. Every target makes the virtual environment that it needs.

PYTHON ?= python3
ENGINE ?= echo
MINUTES ?= 5
SEED   ?=
VENV   ?= .venv
CACHE  ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/prompt-scheduler
ARGS   ?=
DOCS_PORT ?= 8000

BIN          := $(VENV)/bin
PIP          := $(BIN)/python -m pip --disable-pip-version-check
PROGRESS     := sh examples/engines/progress.sh
LLAMA_SERVER ?= $(CACHE)/llama-server/bin/llama-server
VLLM_PYTHON  ?= $(CACHE)/vllm/bin/python
PROMETHEUS   ?= $(CACHE)/prometheus/bin/prometheus

# The stamps: an environment of this Python; what the checks need in it; what the engines need on top.
MADE      := $(VENV)/.made-$(notdir $(PYTHON))
INSTALLED := $(VENV)/.installed
ENGINES   := $(VENV)/.engines
BENCH     := $(VENV)/.bench
MUTATE    := $(VENV)/.mutate
SITE      := build/docs
MERMAID   := $(CACHE)/mermaid-12/mermaid.min.js

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-engines chaos mutate lint format docs docs-serve bench bench-batching bench-scripts bench-loss clean llama-server vllm prometheus

help: ## List what one can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Settings: PYTHON=$(PYTHON), ENGINE=$(ENGINE), ARGS for the demo, pytest and the benchmark."

demo: $(INSTALLED) ## Watch 200 prompts go through; ENGINE=llama or vllm runs a real model server
	@case "$(ENGINE)" in echo|llama|vllm) ;; *) echo "ENGINE is echo, llama or vllm, not $(ENGINE)" >&2; exit 2;; esac
	@if [ "$(ENGINE)" = llama ]; then $(MAKE) --no-print-directory llama-server $(ENGINES); fi
	@if [ "$(ENGINE)" = vllm ]; then $(MAKE) --no-print-directory vllm; fi
	@LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/prompt-scheduler demo --engine $(ENGINE) $(ARGS)

test: $(INSTALLED) ## Run all tests but those that need a model server
	$(BIN)/pytest tests --ignore=tests/engines -n 4 --dist worksteal $(ARGS)

test-engines: $(INSTALLED) $(ENGINES) llama-server vllm prometheus ## Get llama-server, vLLM and Prometheus if need be, test against them, and a minute of chaos
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" PROMETHEUS="$(PROMETHEUS)" REQUIRE_ENGINES=1 \
	  $(BIN)/pytest tests/engines $(ARGS)
	$(MAKE) --no-print-directory chaos MINUTES=1

chaos: $(INSTALLED) ## Break everything for MINUTES, and see that nothing is lost; SEED repeats a run
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

mutate: $(INSTALLED) $(MUTATE) ## Put small mistakes into scripts and policies, and see that tests notice them; some minutes
	$(BIN)/python -m tests.mutation.policies
	$(BIN)/python -m tests.mutation $(ARGS)

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) $(MERMAID) ## Build the documentation's site, strictly, in build/docs/site
	$(BIN)/python docs/gather.py $(SITE) $(wildcard $(MERMAID))
	$(BIN)/zensical build --strict --config-file $(SITE)/zensical.toml
	@echo "Open $(SITE)/site/index.html, or run: make docs-serve"

docs-serve: docs ## Build the documentation's site and serve it at http://localhost:$(DOCS_PORT)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE)/site $(DOCS_PORT)

bench: $(INSTALLED) $(BENCH) ## Measure speed beside seven other queues, some 40 minutes; ARGS=--quick takes two
	$(BIN)/python -m benchmarks $(ARGS)

bench-batching: $(INSTALLED) $(ENGINES) $(BENCH) llama-server vllm ## Measure what batching is worth on both engines
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/python -m benchmarks.batching $(ARGS)

bench-scripts: $(INSTALLED) ## Measure the longest that a script holds Redis, with 100,000 tenants, 5,000 lanes, a million jobs
	$(BIN)/python -m benchmarks.scripts $(ARGS)

bench-loss: $(INSTALLED) ## Measure recovery from a kill, memory behind a backlog, and the wait of critical prompts
	$(BIN)/python -m benchmarks.resilience $(ARGS)

clean: ## Remove the environment and all that was made here; llama-server, vLLM and Prometheus stay in their cache
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Somebody who names a LLAMA_SERVER of their own has no need of ours.
llama-server:
ifeq ($(origin LLAMA_SERVER),file)
	@PYTHON="$(PYTHON)" sh examples/engines/build_llama_server.sh "$(CACHE)/llama-server"
endif

# The same for a VLLM_PYTHON: the Python of an environment with vLLM.
vllm:
ifeq ($(origin VLLM_PYTHON),file)
	@sh examples/engines/install_vllm.sh "$(CACHE)/vllm"
endif

# The same for a PROMETHEUS. It comes from Debian's packages: where there is no apt-get, its tests are skipped.
prometheus:
ifeq ($(origin PROMETHEUS),file)
	@if command -v apt-get >/dev/null; then sh examples/engines/install_prometheus.sh "$(CACHE)/prometheus"; \
	  else echo "no apt-get: going on without Prometheus; name yours in PROMETHEUS" >&2; fi
endif

# What draws the diagrams. It comes from npm: without npm, pages with a diagram load it from a CDN.
$(MERMAID):
	@if command -v npm >/dev/null; then $(PROGRESS) "Getting Mermaid, which draws the diagrams" sh docs/get_mermaid.sh $@; \
	  else echo "no npm: pages with a diagram will load Mermaid from a CDN" >&2; fi

$(MADE):
	@$(PROGRESS) "Making $(VENV)" sh -c "$(PYTHON) -m venv --clear $(VENV) && $(PIP) install --upgrade 'pip>=25.1'"
	@touch $@

$(INSTALLED): pyproject.toml $(MADE)
	@$(PROGRESS) "Installing prompt-scheduler and what its checks need; half a minute or so" $(PIP) install --editable '.[all]' --group lint --group test
	@touch $@

$(ENGINES): pyproject.toml $(INSTALLED)
	@$(PROGRESS) "Installing what makes tiny models" $(PIP) install --group engines
	@touch $@

$(MUTATE): pyproject.toml $(INSTALLED)
	$(PIP) install --group mutate
	@touch $@

$(BENCH): pyproject.toml $(INSTALLED)
	@$(PROGRESS) "Installing what draws the figures" $(PIP) install --group bench
	@touch $@
