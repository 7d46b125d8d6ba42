# evalkit. `make help` lists what can be made; the first target that needs it sets up .venv by itself.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
SUITE ?= demo
ENCODERS ?=
RUNS ?= runs
REPORT ?= report
METHODS ?= mae cae moco_v3 mgc mmc dino mugs ibot selfpatch
MORE ?=
DATA ?= $(EVALKIT_DATA)

.PHONY: help setup demo test lint bench table tables regress docs zoo clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the locked versions (the other targets do it by themselves)

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "evalkit needs Python 3.11 or newer; none found (set PYTHON=/path/to/python3)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked versions into .venv (some minutes the first time, 5 GB) ..."
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $(READY)

demo: $(READY) ## measure shipped encoders on the demo suite, print the table, write the HTML report
	@$(BIN)/evalkit eval $(ENCODERS) --suite demo --out $(RUNS)
	@$(BIN)/evalkit table demo --out $(RUNS) --write
	@$(BIN)/evalkit report $(RUNS) --out $(REPORT)

table: $(READY) ## the same for another suite: make table SUITE=mini [ENCODERS="micro-mgc random"] [EVALKIT_DATA=...]
	@$(BIN)/evalkit eval $(ENCODERS) --suite $(SUITE) --out $(RUNS)
	@$(BIN)/evalkit table $(SUITE) --out $(RUNS) --write

tables: $(READY) ## measure the suites of reports/ and write its tables [EVALKIT_DATA=... for CIFAR-10]
	@$(BIN)/evalkit eval --suite demo --out $(RUNS)
	@$(BIN)/evalkit eval --suite mini --out $(RUNS)
	@test -z "$(EVALKIT_DATA)" || $(BIN)/evalkit eval --suite zoo --limit 4000 --out $(RUNS)
	@$(BIN)/python reports/tables.py $(RUNS)

regress: $(READY) ## measure a suite anew and fail where a number moved: make regress [SUITE=mini]
	@$(BIN)/evalkit regress --suite $(SUITE)

docs: $(READY) ## build the docs site: site/index.html opens from disk
	@$(BIN)/mkdocs --version > /dev/null 2>&1 || $(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build && echo site/index.html

zoo: $(READY) ## pretrain the micro encoders, or go on: make zoo DATA=... [METHODS=mugs] [MORE="--set run.epochs=2"]
	@set -e; for m in $(METHODS); do $(BIN)/evalkit pretrain $$m --preset micro --out pretrained/$$m \
	  $$(test ! -f pretrained/$$m/checkpoint.pt || echo --resume) --data "$(DATA)/cifar10.zip" --data "$(DATA)/pretrain_mix.zip" \
	  --data "$(DATA)/ccp/photos:02[0-9][1-9].jpg" --data "$(DATA)/ccp/photos:02[1-9]0.jpg" --data "$(DATA)/ccp/photos:03*.jpg" \
	  --data "$(DATA)/ccp/photos:0400.jpg" --data "$(DATA)/coco_mini_cc" $(MORE); done

test: $(READY) ## run every test
	@$(BIN)/python -m pytest -n 2 -q

lint: $(READY) ## style (ruff) and types (mypy --strict)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY) ## speed and memory, ours beside the published procedure, as ratios
	@set -e; for b in knn linear sweep retrieval extraction encode part_retrieval pose prompt segmentation video_score video demo growth; do echo "== bench/$$b.py"; $(BIN)/python bench/$$b.py; done

clean: ## remove .venv, records and caches of tools (stored features stay: evalkit cache prune)
	rm -rf .venv runs report site .pytest_cache .mypy_cache .ruff_cache .hypothesis
