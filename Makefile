# `make help` lists what there is to do. Everything sets itself up, may be repeated, and survives a run that was killed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ONEBOX := $(PYTHON) hack/onebox
DEMO_CLUSTER := demo
DEMO_TARGET = $(if $(KUBECONFIG),--kubeconfig $(KUBECONFIG),--cluster $(DEMO_CLUSTER))
DEMO_FLAGS ?=
# What was compiled is kept: tests start hundreds of processes, and to compile torch takes longer than to import it.
unexport PYTHONDONTWRITEBYTECODE
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command 'make lock'

.PHONY: help
help: ## Explain every target.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

## The two commands ---------------------------------------------------------------------------------------------

.PHONY: demo
demo: venv ## Bring up everything and run the main job before your eyes (KUBECONFIG=… for a cluster of your own).
	$(BIN)/python -m demo $(DEMO_TARGET) $(DEMO_FLAGS)

.PHONY: test
test: ## Run every tier of tests: lint, unit, the other flavour, integration, e2e. What CI runs.
	@$(PYTHON) tests/run.py

## Parts of them ------------------------------------------------------------------------------------------------

.PHONY: venv
venv: ## Make .venv from the lock files.
	@$(PYTHON) hack/environment.py $(VENV)

.PHONY: lint
lint: venv ## Ruff, mypy, import-linter, and whether the rendered files are current.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test-unit
test-unit: venv ## The pure core, tables and golden files; the converter on small models. Minutes.
	$(BIN)/pytest tests/unit tests/golden

.PHONY: test-cuda-flavour
test-cuda-flavour: ## The converter's tests on the CPU provider of onnxruntime-gpu, as in that flavour of the image. Minutes.
	@$(PYTHON) hack/environment.py build/cuda-flavour cuda
	build/cuda-flavour/bin/pytest --numprocesses=2 tests/unit/converter

.PHONY: test-integration
test-integration: venv ## A real API server, etcd and controller-manager; a real Triton; a hundred faults. Minutes.
	$(BIN)/pytest tests/integration tests/triton_server tests/faults

.PHONY: test-e2e
test-e2e: venv ## The whole product on a one-machine Kubernetes, under traffic.
	$(BIN)/pytest tests/e2e

.PHONY: test-faults
test-faults: venv ## Every fault at every write and event of a model's life; `make test` takes a hundred of them. Hours.
	ONNX_OPERATOR_FAULTS=all $(BIN)/pytest tests/faults

.PHONY: bench-verdicts
bench-verdicts: venv ## Simulate rollouts: false rollbacks, missed regressions, requests to decide, beside other rules. Minutes.
	PYTHONPATH=tests $(BIN)/python -m bench.verdicts

.PHONY: bench-scale
bench-scale: venv ## A thousand models on one operator: cold start, silence, memory, time from an edit to its answer. Minutes.
	PYTHONPATH=tests $(BIN)/python -m bench.scale

.PHONY: bench-converter
bench-converter: venv ## What converting costs and how fast its graphs are beside torch; writes docs/benchmarks.md. Minutes.
	PYTHONPATH=tests $(BIN)/python -m bench.converter

.PHONY: crds
crds: venv ## Render crds/, the generated reference and what Argo CD needs from their sources.
	$(BIN)/python -m onnx_operator.api.schema crds
	$(BIN)/python hack/reference.py
	$(BIN)/python hack/reasons.py
	$(BIN)/python hack/gitops.py

.PHONY: architectures
architectures: venv ## Convert and judge a small checkpoint of every architecture, and write what came out into docs/. Minutes.
	PYTHONPATH=tests $(BIN)/python -P hack/architectures.py

.PHONY: format
format: venv ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: venv ## Resolve requirements/*.in to locks with hashes and without addresses.
	$(LOCK) requirements/operator.in -o requirements/operator.txt
	$(LOCK) --overrides converter_image/overrides.txt requirements/converter.in -o requirements/converter.txt
	$(LOCK) requirements/converter-cuda.in -o requirements/converter-cuda.txt
	$(LOCK) requirements/converter-build.in -o requirements/converter-build.txt
	$(LOCK) --no-deps requirements/triton.in -o requirements/triton.txt
	$(LOCK) --overrides converter_image/overrides.txt requirements/dev.in -o requirements/dev.txt

## The one-machine Kubernetes -----------------------------------------------------------------------------------

.PHONY: cluster
cluster: ## Bring up Kubernetes on this machine (first time: builds it, about 20 minutes) and print its kubeconfig.
	$(ONEBOX) up --name $(DEMO_CLUSTER)

.PHONY: cluster-down
cluster-down: ## Remove it.
	$(ONEBOX) down --name $(DEMO_CLUSTER)

.PHONY: images
images: ## Build the project's images and load them into the cluster.
	$(ONEBOX) load-images --name $(DEMO_CLUSTER)

.PHONY: demo-down
demo-down: venv ## Remove what `make demo` made.
	$(BIN)/python -m demo --down $(DEMO_TARGET) $(DEMO_FLAGS)
