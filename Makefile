# Every target is all the set-up there is: it makes the virtual environment it needs, says what goes into it and why,
# and runs. An environment is made anew only when pyproject.toml has changed; its stamp is written last, so that an
# installation that was broken off is never taken for a whole one.
#
#   make               lint and test
#   make demo          draw what sentences say, without PyTorch: demo.png
#   make tutorial      open the tutorial in a browser, with everything that it needs
#   make quick         the tests that need neither long training nor many exports: some two minutes
#   make test          all tests but those that need a full-size model or a GPU
#   make test-full     the tests that need a full-size model
#   make test-cuda     the tests that need an NVIDIA GPU; without one they are skipped, with the reason
#   make lint          ruff and mypy
#   make bench         speed and memory of the runtime beside PyTorch, a plain export and OpenVINO, small and at full
#                      size, network by network, and the seconds that a picture of each bundle of classes takes, by
#                      steps; an hour, 12 GB of memory, and 17 GB of files that it makes first and keeps
#                      (docs/benchmark.md)
#   make bench-pictures  whole pictures at full size, from the start of a process to its PNG; beside the same programs
#                      and stable-diffusion.cpp, which is compiled first (half an hour, a C++ compiler)
#   make bench-scaling   how time and memory grow at full size: batches of 1 to 8, 256 to 768 pixels, threads
#   make clean         remove environments, caches and built packages; runs, data and bundles stay
#
# Variables, given after the target:
#
#   PROMPT='a yellow 7 on blue'      what make demo draws instead of a sheet of many sentences
#   PYTHON=python3.12                the Python to make environments with, 3.11 or later
#   NODE=/opt/node/bin/node          the Node to test the JavaScript host with, 20 or later; without one these tests are
#                                    left out by an empty NODE=, and only by that
#   CHROMIUM=/opt/chrome/chrome      the browser to test the page in, instead of the chromium or google-chrome on the path;
#                                    without one these tests are skipped, with the reason
#   PYTEST_FLAGS='-k plan -x'        more arguments for pytest; '-n 0' runs the tests in one process, for a debugger
#   JUPYTER_FLAGS='--no-browser'     more arguments for JupyterLab
#   BENCH_FLAGS='--size 256x256'     more arguments for the benchmark at full size
#   TORCH='torch==2.13.0+cpu'        the PyTorch of the test environment. The tests need no more than its CPU build, a
#                                    tenth of the CUDA build, which pip takes by itself on Linux with x86-64 unless it
#                                    is told where the CPU build is:
#   PIP_FLAGS='--find-links FOLDER'  more arguments for pip, such as a folder of wheels or another index

PYTHON ?= python3
NODE ?= node
TORCH ?= torch==2.13.0
PIP_FLAGS ?=
PYTEST_FLAGS ?=
JUPYTER_FLAGS ?=
BENCH_FLAGS ?=

# One process of tests for each core, since most of an export is Python in one thread. The tests of a file stay together,
# because they share what is costly to make; the files keep their order, in which slow ones come first.
PARALLEL := -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
# What takes longest is shown at the end, so that one sees where the minutes go.
SLOWEST := --durations=30 --durations-min=4

DEMO := .venv/demo
TEST := .venv/test
CUDA := .venv/cuda
OPENVINO := .venv/openvino
SDCPP := .venv/sdcpp
JS := runtime/hosts/js
MODULES := $(if $(NODE),$(JS)/node_modules/.ready)
TUTORIAL := .venv/tutorial

# Packages that lie on these paths would be importable in an environment that promises not to have them.
unexport PYTHONPATH PYTHONHOME
export NODE
# Read by the shell from its environment, where no quote in it can end a word.
export PROMPT

.DEFAULT_GOAL := all
.PHONY: all demo tutorial quick test test-full test-cuda lint bench bench-pictures bench-scaling clean

all: lint test

# An empty environment where the stamp will be, or one line that says why there is none.
define environment
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { found=$$($(PYTHON) --version 2>&1); \
  echo "error: PYTHON=$(PYTHON) is \"$$found\"; give Python 3.11 or later: make PYTHON=python3.11" >&2; exit 2; }; \
rm -rf $(@D) && $(PYTHON) -m venv $(@D)
endef

# -qq: pip speaks only of errors. Without it the lines that matter drown.
install = $(@D)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)

$(DEMO)/.ready: pyproject.toml
	@$(environment)
	@echo "$(@D): installing the runtime and ONNX Runtime for the CPU: what drawing needs, no PyTorch (60 MB to fetch)"
	@$(install) -e '.[cpu]'
	@touch $@

$(TEST)/.ready: pyproject.toml
	@$(environment)
	@echo "$(@D): installing $(TORCH) first, so that nothing else chooses another build (200 MB for the CPU)"
	@$(install) '$(TORCH)'
	@echo "$(@D): installing the packages that train, export, draw, test and lint (110 MB to fetch)"
	@$(install) -e '.[train,export,cpu,dev]'
	@touch $@

$(CUDA)/.ready: pyproject.toml
	@$(environment)
	@echo "$(@D): installing $(TORCH), and ONNX Runtime for CUDA: the CPU's cannot share an environment with it"
	@$(install) '$(TORCH)'
	@$(install) -e '.[train,export,cuda,dev]'
	@touch $@

# What is missing is said in one line, with where to get it.
get_node = apt-get install nodejs npm, or https://nodejs.org; or leave these tests out: make $(or $(MAKECMDGOALS),test) NODE=

$(JS)/node_modules/.ready: $(JS)/package.json $(JS)/package-lock.json
	@$(NODE) -e 'process.exit(Number(process.versions.node.split(".")[0] < 20))' 2>/dev/null || { found=$$($(NODE) --version 2>&1); \
	  echo "error: NODE=$(NODE) is \"$$found\", and the JavaScript host takes Node 20 or later: $(get_node)" >&2; exit 2; }
	@npm --version >/dev/null 2>&1 || { \
	  echo "error: npm is missing, which installs what the JavaScript host is tested with: $(get_node)" >&2; exit 2; }
	@echo "$(@D): installing ONNX Runtime for Node and for browsers, with the libraries of all platforms, and the tokenizers"
	@cd $(JS) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(TUTORIAL)/.ready: pyproject.toml
	@$(environment)
	@echo "$(@D): installing $(TORCH) first, so that nothing else chooses another build (200 MB for the CPU)"
	@$(install) '$(TORCH)'
	@echo "$(@D): installing the packages that train, export and draw, and JupyterLab (120 MB to fetch)"
	@$(install) -e '.[train,export,cpu,tutorial]'
	@touch $@

# The benchmark's peers that have an environment of their own; what goes into it, and why, stands in the file.
$(OPENVINO)/.ready: peers/openvino.txt
	@$(environment)
	@echo "$(@D): installing OpenVINO and what its peer of the benchmark needs (90 MB to fetch)"
	@$(install) -r $<
	@touch $@

$(SDCPP)/.ready: peers/stable_diffusion_cpp.txt
	@$(environment)
	@c++ --version >/dev/null 2>&1 || { \
	  echo "error: a C++ compiler is missing, which compiles stable-diffusion.cpp: apt-get install g++" >&2; exit 2; }
	@echo "$(@D): compiling stable-diffusion.cpp for this processor, half an hour on two cores"
	@nice $(install) -r $<
	@touch $@

demo: $(DEMO)/.ready
	@if $(DEMO)/bin/python -c 'import torch' 2>/dev/null; then \
	  echo "error: PyTorch is importable in $(DEMO), which promises not to have it; make clean" >&2; exit 1; fi
	@echo "make demo: drawing in an environment that has never seen PyTorch"
ifeq ($(origin PROMPT),command line)
	$(DEMO)/bin/python -m runtime "$$PROMPT" --overwrite -o demo.png
else
	$(DEMO)/bin/python -m runtime --prompts pocket --seed 4 --overwrite -o demo --sheet demo.png
endif
	@echo "make demo: the picture is $(CURDIR)/demo.png"

tutorial: $(TUTORIAL)/.ready
	$(TUTORIAL)/bin/python -m jupyterlab $(JUPYTER_FLAGS) training/tutorial.ipynb

quick: $(TEST)/.ready
	$(TEST)/bin/python -m pytest -m 'not slow and not full and not cuda' $(PARALLEL) $(PYTEST_FLAGS)

test: $(TEST)/.ready $(MODULES)
	$(TEST)/bin/python -m pytest -m 'not full and not cuda' $(PARALLEL) $(SLOWEST) $(PYTEST_FLAGS)

# $(call marked,FOLDER,MARK) runs the tests with a mark. Where no test has it pytest ends with status 5: no failure.
define marked
@status=0; $(1)/bin/python -m pytest -q --collect-only -m $(2) >/dev/null 2>&1 || status=$$?; \
if [ $$status -eq 5 ]; then echo "make $@: no test is marked $(2) yet, so there is nothing to run"; \
else set -x; $(1)/bin/python -m pytest -m $(2) $(SLOWEST) $(PYTEST_FLAGS); fi
endef

test-full: $(TEST)/.ready $(MODULES)
	$(call marked,$(TEST),full)

# Where there is no GPU the test environment will do, since the tests only say why they are skipped.
test-cuda: $(if $(shell nvidia-smi -L >/dev/null 2>&1 && echo a GPU),$(CUDA),$(TEST))/.ready
	$(call marked,$(<D),cuda)

lint: $(TEST)/.ready
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

# The bundles of classes that there are, by the family in their manifests.
CLASS_BUNDLES = $(patsubst %/manifest.json,%,$(shell grep -l class-conditional-ddpm models_onnx/*/manifest.json))

bench: $(TEST)/.ready $(OPENVINO)/.ready
	@echo "make bench: the runtime and the reference sampler in PyTorch, same weights, same steps, in turn"
	$(TEST)/bin/python -m runtime benchmark models_onnx/mnist-paper --batch-sizes 1,32 --rounds 7 \
	  --peer "torch=$(TEST)/bin/python -m peers.ddpm_torch models_onnx/mnist-paper"
	@echo "make bench: the cost of sampling, in seconds a picture by steps, each of which is a row of the plan"
	@set -e; for bundle in $(CLASS_BUNDLES); do \
	  $(TEST)/bin/python -m runtime benchmark $$bundle --batch-sizes 32 --steps 5,10,20,50; done
	@echo "make bench: Stable Diffusion 1.5 at full size, network by network: the runtime and its peers, in turn"
	$(TEST)/bin/python tests/full_size_benchmark.py graphs $(BENCH_FLAGS)

bench-pictures: $(TEST)/.ready $(OPENVINO)/.ready $(SDCPP)/.ready
	$(TEST)/bin/python tests/full_size_benchmark.py pictures $(BENCH_FLAGS)

bench-scaling: $(TEST)/.ready $(OPENVINO)/.ready
	$(TEST)/bin/python tests/full_size_benchmark.py scaling $(BENCH_FLAGS)

clean:
	rm -rf .venv build dist demo demo.png .mypy_cache .ruff_cache .pytest_cache .hypothesis $(JS)/node_modules $(JS)/dist
	find training export runtime peers tests -name __pycache__ -type d -prune -exec rm -rf {} +
