# `make help` lists the targets. Every target creates the virtual environment that it needs.

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

# Stamps: the environment for this Python, and what is installed in it.
MADE      := $(VENV)/.made-$(notdir $(PYTHON))
INSTALLED := $(VENV)/.installed
ENGINES   := $(VENV)/.engines
BENCH     := $(VENV)/.bench
MUTATE    := $(VENV)/.mutate
SITE      := build/docs
MERMAID   := $(CACHE)/mermaid-12/mermaid.min.js

# The tests start hundreds of processes: each would compile the project anew without the bytecode of the first.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-engines chaos mutate lint format docs docs-serve bench bench-batching bench-sessions bench-embeddings bench-retrieval bench-scripts bench-loss bench-claim clean llama-server vllm minilm prometheus

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON), ENGINE=$(ENGINE), ARGS for the demo, pytest and the benchmarks."

demo: $(INSTALLED) ## Watch 200 prompts being processed; ENGINE=llama or vllm runs a real model server
	@case "$(ENGINE)" in echo|llama|vllm) ;; *) echo "ENGINE is echo, llama or vllm, not $(ENGINE)" >&2; exit 2;; esac
	@if [ "$(ENGINE)" = vllm ]; then $(MAKE) --no-print-directory vllm; fi
	@VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/prompt-scheduler demo --engine $(ENGINE) $(ARGS)

test: $(INSTALLED) ## Run all tests that need no model server
	$(BIN)/pytest tests --ignore=tests/engines -n 7 --maxschedchunk 2 $(ARGS)

test-engines: $(INSTALLED) $(ENGINES) llama-server vllm minilm prometheus ## Test against llama-server, vLLM and Prometheus, installing them if necessary, and a minute of chaos
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" PROMETHEUS="$(PROMETHEUS)" REQUIRE_ENGINES=1 \
	  $(BIN)/pytest tests/engines $(ARGS)
	$(MAKE) --no-print-directory chaos MINUTES=1

chaos: $(INSTALLED) ## Break everything for MINUTES, and check that nothing is lost; SEED repeats a run
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

mutate: $(INSTALLED) $(MUTATE) ## Plant small mistakes in scripts and policies, and check that tests find them; takes minutes
	$(BIN)/python -m tests.mutation.policies
	$(BIN)/python -m tests.mutation $(ARGS)

lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) $(MERMAID) ## Build the documentation's site, strictly, in build/docs/site
	$(BIN)/python docs/gather.py $(SITE) $(wildcard $(MERMAID))
	$(BIN)/zensical build --strict --config-file $(SITE)/zensical.toml
	@echo "Open $(SITE)/site/index.html, or run: make docs-serve"

docs-serve: docs ## Build the documentation's site and serve it on localhost, port DOCS_PORT (8000)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE)/site $(DOCS_PORT)

bench: $(INSTALLED) $(BENCH) ## Measure speed beside seven other queues in 40 minutes; with ARGS=--quick, in two
	$(BIN)/python -m benchmarks $(ARGS)

bench-batching: $(INSTALLED) $(ENGINES) $(BENCH) llama-server vllm ## Measure the gain from batching on both engines
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/python -m benchmarks.batching $(ARGS)

bench-sessions: $(INSTALLED) $(ENGINES) llama-server vllm ## Measure what sessions bring out of the engines' prefix caches
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/python -m benchmarks.sessions $(ARGS)

bench-embeddings: $(INSTALLED) $(ENGINES) llama-server vllm minilm ## Measure the gain from joint calls for embeddings
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/python -m benchmarks.embeddings $(ARGS)

bench-retrieval: $(INSTALLED) $(ENGINES) llama-server vllm minilm ## Measure what retrieval finds, by words and by meaning
	LLAMA_SERVER="$(LLAMA_SERVER)" VLLM_PYTHON="$(VLLM_PYTHON)" $(BIN)/python -m benchmarks.retrieval

bench-scripts: $(INSTALLED) ## Measure how long scripts block Redis, with 100,000 tenants, 5,000 lanes, a million jobs
	$(BIN)/python -m benchmarks.scripts $(ARGS)

bench-loss: $(INSTALLED) ## Measure recovery from a kill, memory with a backlog, and the wait of critical prompts
	$(BIN)/python -m benchmarks.resilience $(ARGS)

bench-claim: $(INSTALLED) $(BENCH) llama-server ## Measure first words of urgent chats beside background work, directly and through us
	LLAMA_SERVER="$(LLAMA_SERVER)" $(BIN)/python -m benchmarks.claim $(ARGS)

clean: ## Remove the environment and everything built here; llama-server, vLLM and Prometheus stay in their cache
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Not needed if LLAMA_SERVER names one of your own.
llama-server:
ifeq ($(origin LLAMA_SERVER),file)
	@PYTHON="$(PYTHON)" sh examples/engines/build_llama_server.sh "$(CACHE)/llama-server"
endif

# Not needed if VLLM_PYTHON names the Python of an environment with vLLM.
vllm:
ifeq ($(origin VLLM_PYTHON),file)
	@sh examples/engines/install_vllm.sh "$(CACHE)/vllm"
endif

minilm: $(INSTALLED)
	@PYTHON="$(BIN)/python" sh examples/engines/fetch_minilm.sh "$(CACHE)/minilm"

# Not needed if PROMETHEUS names one of your own. It comes from Debian's packages; without apt-get its tests are skipped.
prometheus:
ifeq ($(origin PROMETHEUS),file)
	@if command -v apt-get >/dev/null; then sh examples/engines/install_prometheus.sh "$(CACHE)/prometheus"; \
	  else echo "no apt-get: continuing without Prometheus; name yours in PROMETHEUS" >&2; fi
endif

# Draws the diagrams. It comes from npm: without npm, pages with a diagram load it from a CDN.
$(MERMAID):
	@if command -v npm >/dev/null; then $(PROGRESS) "Getting Mermaid, which draws the diagrams" sh docs/get_mermaid.sh $@; \
	  else echo "no npm: pages with a diagram will load Mermaid from a CDN" >&2; fi

$(MADE):
	@$(PROGRESS) "Making $(VENV)" sh -c "$(PYTHON) -m venv --clear $(VENV) && $(PIP) install --upgrade 'pip>=25.1'"
	@touch $@

$(INSTALLED): pyproject.toml $(MADE)
	@$(PROGRESS) "Installing prompt-scheduler and the tools for its checks; takes half a minute" $(PIP) install --editable '.[all]' --group lint --group test
	@touch $@

$(ENGINES): pyproject.toml $(INSTALLED)
	@$(PROGRESS) "Installing the tools that make tiny models" $(PIP) install --group engines
	@touch $@

$(MUTATE): pyproject.toml $(INSTALLED)
	$(PIP) install --group mutate
	@touch $@

$(BENCH): pyproject.toml $(INSTALLED)
	@$(PROGRESS) "Installing the tools that draw the plots" $(PIP) install --group bench
	@touch $@
