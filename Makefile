# Every task of the project. `make help` lists them; needs only Debian's make, git, Python and gcc.
# Recipes say what they do through deploy/install and .venv; nothing else is expected on the machine.

VENV := .venv/bin
# `make down` in a script has nobody to ask.
DOWN_FLAGS ?= $(shell [ -t 0 ] || echo --yes)
PYTEST_FLAGS ?=
NODES ?= 3
PROTO_FILES := cumulet/v1/*.proto
ETCD_PROTO := controller/store/etcdpb/rpc.proto
# The generator of type stubs is found by its name on PATH.
PROTOC := PATH=$(CURDIR)/$(VENV):$$PATH $(CURDIR)/$(VENV)/python -m grpc_tools.protoc -I.
SERVICE_FILES = $(shell cd proto && grep -l '^service ' $(PROTO_FILES))
PROTO_OUT := .
ETCD_OUT := .
STUBS := $(CURDIR)/build/stubs

.DEFAULT_GOAL := help
.PHONY: help install proto build lint test bench bench-scheduler bench-net demo down lab lab-down docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install what is needed: Debian packages and .venv (idempotent)
	@deploy/install

demo: install ## Start a one-machine cloud, boot a real VM and show it
	@$(VENV)/python -m deploy.local.demo

down: ## Stop the cloud of this machine and remove every trace of it
	@if [ -x $(VENV)/cumulet ]; then $(VENV)/cumulet down $(DOWN_FLAGS); \
	else echo "nothing is installed here, so nothing runs"; fi

lab: install ## Start a cloud of NODES=3 nodes on this machine; then: cumulet lab --help
	@$(VENV)/cumulet lab up --nodes $(NODES)

lab-down: ## End the lab and remove every trace of it
	@if [ -x $(VENV)/cumulet ]; then $(VENV)/cumulet lab down; \
	else echo "nothing is installed here, so nothing runs"; fi

test: install ## Run all tests; a missing component fails them
	@$(VENV)/python -m pytest $(PYTEST_FLAGS)

lint: install ## Check style, types, import directions, protos and their stubs
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	$(VENV)/buf lint
	@rm -rf $(STUBS) && mkdir -p $(STUBS)/proto
	@$(MAKE) --no-print-directory proto PROTO_OUT=$(STUBS)/proto ETCD_OUT=$(STUBS)
	@cd $(STUBS) && find . -type f -exec diff -q {} $(CURDIR)/{} \; 2>&1 | (! grep .) \
		|| { echo "the stubs are older than their protos: run 'make proto'"; exit 1; }

bench: install ## Measure (first-vm suite); JSON lines in build/bench
	@$(VENV)/python -m tests.bench.first_vm

bench-scheduler: install ## Measure the scheduler on traces (minutes); JSON lines in build/bench
	@$(VENV)/python -m tests.bench.scheduler

bench-net: install ## Measure the network (minutes); JSON lines in build/bench
	@$(VENV)/python -m tests.bench.net

build: install ## Compile the kernels in place after a change of cext/
	$(VENV)/python setup.py --quiet build_ext --inplace

proto: install ## Generate the gRPC stubs anew
	@echo "stubs of $(PROTO_FILES) and $(ETCD_PROTO)"
	@cd proto && $(PROTOC) --python_out=$(PROTO_OUT) --mypy_out=quiet:$(PROTO_OUT) $(PROTO_FILES)
	@cd proto && $(PROTOC) --grpc_python_out=$(PROTO_OUT) --mypy_grpc_out=quiet:$(PROTO_OUT) $(SERVICE_FILES)
	@$(PROTOC) --python_out=$(ETCD_OUT) --mypy_out=quiet:$(ETCD_OUT) \
		--grpc_python_out=$(ETCD_OUT) --mypy_grpc_out=quiet:$(ETCD_OUT) $(ETCD_PROTO)

docs: install ## Write the generated pages anew: keys, command line, fields
	@$(VENV)/python -m cli.fields
	@$(VENV)/python -m cli.reference
	@$(VENV)/python -m controller.store.keys > docs/reference/keys.md

clean: ## Remove what was built and cached in this checkout; .venv and the cloud stay
	rm -rf build dist *.egg-info proto/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
