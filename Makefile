# Everything runs in .venv; `make` lists what there is.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help setup demo up check test bench lock tools docs golden clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/ready ## make .venv with the locked packages

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "banksman needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## the whole thing on this machine: agents act, the two questions are answered
	$(BIN)/banksman up --demo

up: setup ## Kafka, ClickHouse and every service on this machine, until Ctrl-C
	$(BIN)/banksman up

check: setup ## format, lint, types, layers, docs: what CI runs before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/build --check

test: setup ## every test, on a real broker and a real ClickHouse engine; two files at a time, most of which wait
	$(BIN)/pytest -n 2 --dist loadfile

bench: setup ## the measurements behind the tables in bench/
	$(BIN)/python bench/run.py

COMPILE := uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version 3.11

lock: setup ## resolve the dependencies again: requirements.lock, and what the image is made of
	$(BIN)/$(COMPILE) --all-extras --group dev --upgrade pyproject.toml --output-file requirements.lock
	$(BIN)/$(COMPILE) --extra server --extra cel -c requirements.lock pyproject.toml --output-file deploy/image/server.lock
	$(BIN)/$(COMPILE) --group build -c requirements.lock --output-file deploy/image/build.lock

tools: setup ## Helm, promtool and Docker Compose, with Go (minutes): tests/deploy has the files of deploy/ read by them
	GOBIN=$(abspath $(BIN)) CGO_ENABLED=0 go install helm.sh/helm/v3/cmd/helm@v3.19.0
	GOBIN=$(abspath $(BIN)) CGO_ENABLED=0 go install github.com/prometheus/prometheus/cmd/promtool@v0.316.0
	cd $$(mktemp -d) && go mod init tools && go get github.com/docker/compose/v2/cmd@v2.40.3 && \
	  CGO_ENABLED=0 go build -o $(abspath $(BIN))/docker-compose github.com/docker/compose/v2/cmd

docs: setup ## write the reference pages that are made from the code
	$(BIN)/python docs/build

golden: setup ## write the golden files again; the diff is read in review
	$(BIN)/pytest --golden-write -p no:randomly tests/golden tests/docs/test_tutorial.py tests/docs/test_first_policy.py

clean: ## remove .venv and caches (not .banksman, where the data is)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
