# What a developer types; `make` alone lists it. Every command prepares what it needs and repeats cheaply:
# a file under .venv/ or .tools/ marks each finished preparation and is older than what it was made from
# when it has to be done again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
# Each process of the tests would compile all of them again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
# Only the hashed files say what is installed; an index or a constraint from the environment can add nothing to it.
PIP_HASHED := $(PIP) install --require-hashes --no-deps

PAGE := proxy/playground/web
BUNDLE := $(PAGE)/static/bundle/main.js
PAGE_SOURCES := $(shell find $(PAGE)/src -name '*.ts' 2>/dev/null)
# The viewer of /docs, from a package.
VIEWER := proxy/routes/openapi/viewer/bundle
VIEWER_FILES := swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt swagger-ui.css LICENSE NOTICE
# The scripts of /console, from packages.
CONSOLE := proxy/console/static/bundle
CONSOLE_FILES := htmx.org/dist/htmx.min.js htmx-ext-sse/dist/sse.min.js uplot/dist/uPlot.iife.min.js uplot/dist/uPlot.min.css \
  uplot/LICENSE
# Programs outside Python, each with the Debian package that brings it.
TEST_PROGRAMS := curl:curl openssl:openssl node:nodejs npm:npm java:default-jdk-headless mvn:maven go:golang chromium:chromium \
  nginx:nginx buildah:buildah debootstrap:debootstrap redis-server:redis-server pg_ctlcluster:postgresql pgbouncer:pgbouncer \
  promtool:prometheus sqlite3:sqlite3 caddy:caddy
BENCH_PROGRAMS := node:nodejs npm:npm wrk:wrk taskset:util-linux nginx:nginx redis-server:redis-server pg_ctlcluster:postgresql

# What users run is measured: the Python of the image's Debian. `make bench BENCH_PYTHON=…` measures with another; one that
# was built without optimisation flatters nobody.
IMAGE_PYTHON := $(CURDIR)/.tools/debian/usr/bin/python3
BENCH_PYTHON ?= $(IMAGE_PYTHON)
BENCH := .tools/bench-python

# Processes for the whole of the tests; 0 is one alone. A file's tests stay together, as they share what they built, and
# the files keep the order of tests/support/order.py, the longest first.
WORKERS ?= 3

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= fal-proxy:latest
COMMIT = $(shell git rev-parse HEAD 2>/dev/null)
# Where the repository is, for the links of the package and the labels of the image.
PROJECT_URL ?=
export PROJECT_URL
PICTURES ?= off
OTEL ?= off
BUILD_FACTS = --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg PROJECT_URL=$(PROJECT_URL) \
  --build-arg PICTURES=$(PICTURES) --build-arg OTEL=$(OTEL)
PLATFORMS ?= linux/amd64,linux/arm64
IMAGE_BUILDER ?= $(firstword $(foreach tool,docker podman buildah,$(if $(shell command -v $(tool)),$(tool))))

##@ Use

.PHONY: run
run: .venv/.runtime $(BUNDLE) $(VIEWER)/LICENSE $(CONSOLE)/LICENSE ## Start everything on this machine; with FAL_KEY set it talks to fal, else to the sandbox
	@exec $(BIN)/fal-proxy dev

.PHONY: image
image: $(BUNDLE) $(VIEWER)/LICENSE $(CONSOLE)/LICENSE ## Build the production image (IMAGE=fal-proxy:latest, OTEL=on to send traces, PICTURES=on to strip metadata)
	@test -n "$(IMAGE_BUILDER)" || { echo "make image needs docker, podman or buildah" >&2; exit 1; }
	$(IMAGE_BUILDER) build -t $(IMAGE) $(BUILD_FACTS) .

.PHONY: image-push
image-push: $(BUNDLE) $(VIEWER)/LICENSE $(CONSOLE)/LICENSE ## Build it for amd64 and arm64 and push it (IMAGE=registry.example.com/fal-proxy:1.0)
	docker buildx build --platform $(PLATFORMS) -t $(IMAGE) $(BUILD_FACTS) --sbom=true --provenance=true --push .

.PHONY: wheel
wheel: .venv/.dev bundle ## Build the package into dist/ (PROJECT_URL=https://git.example.com/acme/fal-proxy, where its links lead)
	@$(BIN)/uv build -q --no-build-isolation --python $(BIN)/python --out-dir dist

.PHONY: sbom
sbom: .venv/.dev ## List the packages that a server runs on, with their versions, in build/sbom.cdx.json (CycloneDX)
	@$(BIN)/uv venv -q --clear --python $(BIN)/python build/server
	@$(BIN)/uv pip install -q --python build/server/bin/python --require-hashes --no-deps -r requirements/runtime.txt
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file build/sbom.cdx.json build/server/bin/python

.PHONY: docs
docs: .venv/.dev ## Build the documentation's site into build/site
	@$(BIN)/python -m mkdocs build --strict

##@ Check

.PHONY: test
test: tools .venv/.dev bundle clients lint types page-types ## Install what the tests need, then run all of them
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test-fast
test-fast: lint types ## Little more than a minute on two idle cores: lint, types and the tests that start nothing of their own
	@$(BIN)/python -m pytest -m "not tools and not slow" -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: lint
lint: .venv/.dev ## Ruff over everything
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --check --no-cache --quiet .

.PHONY: types
types: .venv/.dev ## mypy, strict, over proxy/
	@$(BIN)/mypy

.PHONY: page-types
page-types: $(PAGE)/node_modules/.installed ## The TypeScript compiler over the page
	@cd $(PAGE) && npm run --silent check

.PHONY: bench
bench: $(BENCH)/.installed ## Compare with the official proxy and nginx, and tell what the limits cost; prints ratios
	@tests/tools/apt.sh $(BENCH_PROGRAMS)
	@set -e; for part in tests.bench tests.bench.limits tests.bench.endurance tests.bench.uploads \
	  tests.bench.flame; do \
	  $(BENCH)/bin/python -m $$part; done

.PHONY: soak
soak: .venv/.dev ## Ten minutes of hundreds of jobs and a restart: nothing is lost, nothing accumulates (MINUTES=10)
	@$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10)

.PHONY: fuzz
fuzz: .venv/.dev ## A quarter of an hour of broken HTTP, lying JSON and mutated bytes (MINUTES=5 of each)
	@$(BIN)/python -m tests.fuzz.http --minutes $(or $(MINUTES),5)
	@$(BIN)/python -m tests.fuzz.json --minutes $(or $(MINUTES),5)
	@mkdir -p build && $(BIN)/python -m tests.fuzz.parsers -max_total_time=$$((60 * $(or $(MINUTES),5))) -artifact_prefix=build/

##@ Prepare

.PHONY: tools
tools: ## The programs outside Python that the tests drive (Debian packages when root, helm and kubeconform by Go)
	@tests/tools/apt.sh $(TEST_PROGRAMS)
	@tests/tools/helm.sh
	@tests/tools/kubeconform.sh

.PHONY: clients
clients: .venv/.dev ## The published fal clients and the official proxy that the tests run
	@$(BIN)/python -m tests.clients.install
	@$(BIN)/python -m tests.comparison.install

.PHONY: bundle
bundle: $(BUNDLE) $(VIEWER)/LICENSE $(CONSOLE)/LICENSE ## The playground's script, with the fal client in it, the viewer of /docs and the scripts of /console

.PHONY: requirements
requirements: $(BIN)/uv ## Pin pyproject.toml's dependencies again, with hashes (UPGRADE=--upgrade for newer ones)
	@compile="$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate $(UPGRADE)"; \
	$$compile pyproject.toml -o requirements/runtime.txt; \
	$$compile pyproject.toml --group dev -c requirements/runtime.txt -o requirements/dev.txt; \
	$(BIN)/python requirements/build.py | $$compile - -c requirements/dev.txt -o requirements/build.txt; \
	$$compile pyproject.toml --extra otel -c requirements/dev.txt -o requirements/otel.txt; \
	$$compile --group sbom -c requirements/dev.txt -o requirements/sbom.txt

.PHONY: clean
clean: ## Remove everything that was installed or built
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build $(PAGE)/static/bundle $(VIEWER) $(CONSOLE)
	find . -name node_modules -prune -exec rm -rf {} +
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

# Preparations, each marked by a file.

.venv/.created:
	@tests/tools/venv.sh "$(PYTHON)"
	@touch $@

# The project itself is built by the hashed build backend, without the isolated download that pip would make.
.venv/.runtime: .venv/.created requirements/build.txt requirements/runtime.txt pyproject.toml
	@echo "Installing the hashed requirements into .venv" >&2
	@$(PIP_HASHED) -r requirements/build.txt -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.runtime requirements/dev.txt
	@$(PIP_HASHED) -r requirements/dev.txt
	@touch $@

# The same packages as in .venv, on the interpreter that the benchmarks use.
$(BENCH)/.installed: .venv/.dev $(BENCH_PYTHON)
	@echo "Installing the hashed requirements for $(BENCH_PYTHON)" >&2
	@$(BIN)/uv venv -q --clear --seed --python $(BENCH_PYTHON) $(BENCH)
	@$(BIN)/uv pip install -q --python $(BENCH)/bin/python --require-hashes --no-deps -r requirements/build.txt \
	  -r requirements/runtime.txt -r requirements/dev.txt
	@$(BIN)/uv pip install -q --python $(BENCH)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

$(IMAGE_PYTHON):
	@tests/tools/image-python.sh

# Only `make requirements` needs it before the requirements can be installed.
$(BIN)/uv: | .venv/.created
	@$(PIP) install uv

$(PAGE)/node_modules/.installed: $(PAGE)/package.json $(PAGE)/package-lock.json
	@command -v npm >/dev/null || { echo "Building the page needs Node.js with npm (https://nodejs.org)" >&2; exit 1; }
	@cd $(PAGE) && npm ci --no-audit --no-fund --no-update-notifier --loglevel=error >&2
	@touch $@

$(BUNDLE): $(PAGE)/node_modules/.installed $(PAGE_SOURCES)
	@cd $(PAGE) && npm run --silent build >&2
	@touch $@

$(VIEWER)/LICENSE: $(PAGE)/node_modules/.installed
	@mkdir -p $(VIEWER)
	@cp $(VIEWER_FILES:%=$(PAGE)/node_modules/swagger-ui-dist/%) $(VIEWER)/
	@touch $@

$(CONSOLE)/LICENSE: $(PAGE)/node_modules/.installed
	@mkdir -p $(CONSOLE)
	@cp $(CONSOLE_FILES:%=$(PAGE)/node_modules/%) $(CONSOLE)/
	@touch $@
