# SPDX-License-Identifier: Apache-2.0
# Everything works from a fresh clone: each target builds its own .venv first (set PYTHON to choose
# the interpreter). Versions are pinned in constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c "" 2>/dev/null \
	&& echo python3.11 || echo python3)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# What is in .venv: all of it, or only what a demo runs with. A demo uses all of it where it is there.
STAMP := $(VENV)/.tal_fast_installed
DEMO_STAMP := $(VENV)/.tal_fast_demo_installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
CXX_FILES = $(shell find csrc tests/native tests/cuda_emulator tests/endurance \
	-name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# Presets of CMakePresets.json for test-native. `debug` has all that `asan` has, but for its speed.
# With `debug-wide` the kernels of every instruction set: test-all takes that time.
SANITIZED := debug tsan
# Architectures of cuda-kernels: --quick is sm_90 alone, which has the limits; with `make test-all` sm_80 too.
CUDA_KERNELS := --quick
CUDA_COUNT ?=
RESULTS ?= results/demo
# For cuda-link: the CUDA build of torch to link against, and where.
CUDA_TORCH ?= 2.14.1
LINK := build/cuda-link
LINK_BIN := $(LINK)/venv/bin
# For gpu-check: a Python that has a CUDA build of torch; nothing is installed into it.
GPU_PYTHON ?= python3
GPU_CHECK ?=

export MAX_JOBS := $(JOBS)
# Covers pip's isolated build environments too: without it they would take the newest torch.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

# For docs: an environment of its own, since no other target needs what a site does.
DOCS := build/docs
DOCS_BIN := $(DOCS)/venv/bin

.PHONY: help dev build docs test check test-all test-ops-isa test-native cuda-kernels cuda-count \
	cuda-link gpu-check endurance lint format demo demo-build bench bench-eval bench-loader clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned, so that nothing after it pulls another one. No isolation: the build
# requirements are in the environment anyway, and a rebuild then needs no network.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard build_backend/*.py) | $(BIN)/python
	$(PIP) install --quiet torch
	$(PIP) install --quiet setuptools cmake ninja pybind11
	TAL_FAST_WERROR=ON $(PIP) install --quiet --no-build-isolation -e '.[test,bench,dev]'
	@touch $@

# Without what only tests need, and without -Werror: a newcomer's compiler may warn of other things.
# Bytecode is made of what is imported, when it is; for all of torch at once it would take longer than
# the library's own compilation. pip and ninja say what they are at.
$(DEMO_STAMP): pyproject.toml constraints.txt setup.py $(wildcard build_backend/*.py) | $(BIN)/python
	@echo "== 1/3: packages into $(VENV), torch first"
	$(PIP) install --no-compile torch
	$(PIP) install --no-compile setuptools cmake ninja pybind11
	@echo "== 2/3: the native library, for every instruction set"
	$(BIN)/python setup.py build_ext --inplace
	$(PIP) install --no-compile --no-build-isolation -e '.[demo]'
	@touch $@

demo-build: $(DEMO_STAMP)
	@$(BIN)/python setup.py --quiet build_ext --inplace

# Recompiles what changed; a second or two when nothing did.
build: $(STAMP)
	@TAL_FAST_WERROR=ON TAL_FAST_CUDA_EMULATOR=ON \
	  $(BIN)/python setup.py --quiet build_ext --inplace

dev: build  ## Set up .venv with everything and build the native library in place

# In processes of pytest-xdist; the tests of a file in one, for what they share.
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile
# Of large grids of cases all but test-all run a sample (tests/case_samples.py), with this seed.
test check: export TAL_FAST_TEST_SAMPLE ?= 1
# For check: the commit to compare with; where the branch left origin/main or main by default.
BASE ?=

test: lint build test-native cuda-kernels test-ops-isa  ## Lint, build, native tests, all tests but the slow ones
	$(PYTEST) -m "not slow"

check: lint build  ## Lint, build, the tests of what changed and of its neighbours: before every commit
	@tests="$$($(BIN)/python tests/affected.py $(if $(BASE),--base $(BASE)))"; \
	if [ -n "$$tests" ]; then $(PYTEST) -m "not slow" $$tests; else echo "no tests to run"; fi

test-all: SANITIZED := debug-wide asan tsan
test-all: CUDA_KERNELS :=
test-all: lint build test-native cuda-kernels test-ops-isa  ## As test, with the slow ones and every case
	build/asan/fuzz_reader 120
	$(PYTEST)

# The op tests once more for each instruction set of this machine but the best, which `test` itself
# runs; without those of the CUDA kernels, which have none, and without what no CPU kernel decides.
ISA_FREE := arguments cuda cuda_emulator derivatives docstrings instruction_sets registration
test-ops-isa: build
	@isas="$$($(BIN)/python -c "import tal_fast.info as i; print(*i.instruction_sets()[:-1])")"; \
	if [ -z "$$isas" ]; then exit; fi; \
	echo "op tests with TAL_FAST_ISA of $$isas: gw0 and so on"; \
	$(BIN)/python -m pytest -q --dist each $$(printf -- "--tx popen//env:TAL_FAST_ISA=%s " $$isas) \
	  -p no:cacheprovider -m "not slow and not compile" \
	  -k "not emulated and not opcheck and not errors" \
	  $(ISA_FREE:%=--ignore=tests/ops/test_%.py) tests/ops

test-native: $(STAMP)  ## Reader, evaluator and _C in Python under sanitizers; one definition per name
	@export PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)"; \
	for preset in $(SANITIZED); do \
	  cmake --preset $$preset >/dev/null; \
	  cmake --build --preset $$preset --parallel $(JOBS); \
	  ctest --preset $$preset --parallel $(JOBS); \
	done

cuda-kernels: $(STAMP)  ## Compile the CUDA kernels if nvcc is there: registers, spills, occupancy, machine code
	@$(BIN)/python tests/cuda/kernel_table.py $(CUDA_KERNELS)

# A part of it is a test of `make test`. CUDA_COUNT='--only "IoU" --json FILE', CUDA_COUNT=--write.
cuda-count: build  ## Count what the CUDA kernels do to memory, in the emulator; compare with limits
	@$(BIN)/python tests/cuda_emulator/counts.py $(CUDA_COUNT)

$(LINK_BIN)/python:
	$(PYTHON) -m venv $(LINK)/venv
	env -u PIP_CONSTRAINT $(LINK_BIN)/python -m pip --disable-pip-version-check install --quiet \
	  torch==$(CUDA_TORCH) setuptools cmake ninja pybind11

# About 6 GB in build/cuda-link; `rm -r build/cuda-link` throws it away.
cuda-link: $(LINK_BIN)/python  ## Link the CUDA kernels against a CUDA build of torch and load them
	rm -rf $(LINK)/site
	env -u PIP_CONSTRAINT TAL_FAST_CUDA=1 TAL_FAST_WERROR=ON \
	  TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-9.0}" \
	  TAL_FAST_BUILD_DIR=$(CURDIR)/$(LINK)/objects \
	  $(LINK_BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation \
	  --no-deps --target $(LINK)/site .
	cd $(LINK) && PYTHONPATH=site venv/bin/python $(CURDIR)/tests/cuda/link_check.py

# Hours; what it counted goes into docs/results/endurance and docs/reliability.md.
# ENDURANCE='studies --scale 0.1' runs a part, or a share of the counts; --resume goes on.
ENDURANCE ?=
endurance: build  ## Kill, starve and corrupt everything, and count; ENDURANCE='--scale 0.01' for a sample
	$(BIN)/python tests/endurance $(ENDURANCE)
	$(BIN)/python tests/endurance/table.py

# Everything that only a GPU can show, offline, in two calls of 300 and 400 s; GPU_CHECK=--dry-run
# lists the steps, GPU_CHECK='--call 1' runs the first.
gpu-check:  ## On a GPU: build, bits, benchmarks beside predictions; profile, sanitizer, parity, peers
	$(GPU_PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

lint: $(STAMP)  ## ruff, mypy, clang-format (changes nothing)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(STAMP)  ## Let ruff and clang-format rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

demo: $(if $(wildcard $(STAMP)),build,demo-build)  ## Run the study on the embedded data; prints the curve and where picture and page are
	@echo "== 3/3: a study of synthetic data: 15 trainings of TadTR, two at a time"
	$(BIN)/tal-fast study demo --out $(RESULTS)
	@echo "== picture: $(RESULTS)/curve.png; page: $(RESULTS)/report.html"
	@echo "== . $(BIN)/activate puts tal-fast on the path of this shell"

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)/venv
	$(DOCS_BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', \
	  'rb'))['project']['optional-dependencies']['docs'], sep='\n')" >$(DOCS)/requirements.txt
	$(DOCS_BIN)/python -m pip --disable-pip-version-check install --quiet -r $(DOCS)/requirements.txt
	@touch $@

docs: $(DOCS)/.installed  ## Build the site of the pages into build/site; broken links fail (Python 3.11 or newer)
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --quiet --strict -f docs/site/mkdocs.yml
	@echo "open build/site/index.html"

bench: build  ## Run the benchmarks, print their table, write it into docs/benchmarks.md
	$(BIN)/python -m pytest -q benchmarks/ -o python_files='bench_*.py' \
	  -o filterwarnings=default --benchmark-only --benchmark-columns=median,iqr,rounds
	$(BIN)/python benchmarks/bench_study.py
	$(BIN)/python benchmarks/results_table.py --page docs/benchmarks.md
	$(BIN)/python benchmarks/bench_training_step.py

# Only the evaluator's rows: with TAL_FAST_PEERS set, and pandas on PYTHONPATH for most of them.
bench-eval: build  ## Benchmark the evaluator against other projects' and print its table
	$(BIN)/python -m pytest -q benchmarks/bench_evaluation.py -o filterwarnings=default \
	  --benchmark-only --benchmark-columns=median,iqr,rounds

bench-loader: build  ## Benchmark the feature loader against other projects' reading code
	$(BIN)/python -m pytest -q benchmarks/bench_loader.py -o filterwarnings=default \
	  --benchmark-only --benchmark-columns=median,iqr,rounds
	$(BIN)/python benchmarks/bench_loader.py

clean:  ## Remove build outputs (.venv stays)
	rm -rf build tal_fast.egg-info tal_fast/_C*.so tests/cuda_emulator/cuda_*.so .mypy_cache .ruff_cache .pytest_cache
	rm -f $(STAMP) $(DEMO_STAMP)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
