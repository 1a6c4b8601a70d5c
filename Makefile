# Everything below sets itself up on a fresh machine: Python >= 3.10, a C/C++ compiler and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is imported is compiled then; compiling all of torch and transformers takes longer than the suite's imports.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# Processes of the test suite: a file of tests is run by one of them.
WORKERS ?= 2
SOURCES := src tests examples scripts benchmarks
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp)

.PHONY: demo test test-slow test-native test-distributed test-interop test-floors test-newest docs bench-kernels bench-decode bench-train results style check clean

# The main job: the whole recipe on a small model, in minutes, on two cores. Writes quickstart/report.html.
# On a machine with more than twice as much work as cores, threads that spin while they wait take the cores from those that they wait for.
# On a quiet one it is spinning that is faster.
demo: $(VENV)/.installed
	if awk -v cores="$$(nproc)" '{exit !($$1 > 2 * cores)}' /proc/loadavg 2>/dev/null; then export OMP_WAIT_POLICY="$${OMP_WAIT_POLICY:-passive}"; fi; \
	$(BIN)/bitdistill quickstart --output_dir quickstart

# The test suite, without what is slow.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -p no:cacheprovider -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What is slow, an hour or more: thousands of damaged files, kills at every moment, every engine, blocks of the docs that train.
test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -p no:cacheprovider -m slow $(PYTEST_ARGS)

# The C++ tests, also under sanitizers, fuzzed, and for ARM in an emulator where that is installed: for a change in csrc/.
test-native: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -p no:cacheprovider -m "" tests/native $(PYTEST_ARGS)

# All that starts several processes on this machine: every engine, kills, two and four processes.
test-distributed: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -p no:cacheprovider -m "" tests/distributed tests/examples/test_launch.py $(PYTEST_ARGS)

# What reads and serves students beside us: llama.cpp (built from source where there is no wheel), lm_eval, transformers' server, TRL. Without the
# extra `interop`, which this installs, the suite skips most of it.
test-interop: $(VENV)/.installed-interop
	$(BIN)/python -m pytest -q -p no:cacheprovider -rs tests/interop tests/export/test_llama_cpp.py tests/optimum/test_serving.py tests/test_compat.py $(PYTEST_ARGS)

# A quick part of it with every dependency at its lower bound, and with all at their newest, each in an environment of its own.
test-floors test-newest:
	PYTHON=$(PYTHON) WORKERS=$(WORKERS) scripts/test_bounds.sh $(@:test-%=%)

# The documentation as a site in build/site, without a network; a broken link and any other warning is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Speed of the native kernels against torch and the machine's own limits. Nothing else should run meanwhile.
bench-kernels: $(VENV)/.installed-test
	$(BIN)/python benchmarks/bench_kernels.py --output benchmarks/results/kernels.json

# Speed of whole models; beside llama.cpp where llama-cpp-python and gguf are installed in $(VENV).
bench-decode: $(VENV)/.installed-test
	$(BIN)/python benchmarks/bench_decode.py --output benchmarks/results/decode.json

# Time and memory of training steps, beside full precision and beside a naive distillation.
bench-train: $(VENV)/.installed-test
	$(BIN)/python benchmarks/bench_training_step.py --output benchmarks/results/training_step.json

# Tables and plots from the JSON of benchmarks; nothing is run.
results: $(VENV)/.installed
	$(BIN)/python benchmarks/accuracy/render.py benchmarks/results/accuracy
	cd scripts && ../$(BIN)/python -m documentation.make

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Style and types, nothing is changed. Types are looked up in what is installed: in a second after the first time, which takes half a minute.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("hf-bitdistill needs Python >= 3.10, this is " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)

# torch alone and first: a requirement of another package must not choose its build.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(INSTALL) -r constraints.txt
	touch $@

# The native library is built with the package, so its sources are prerequisites too.
NATIVE := CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) $(VENV)/.torch
	$(INSTALL) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt $(NATIVE) $(VENV)/.torch
	DS_BUILD_OPS=0 $(INSTALL) -c constraints.txt -e '.[test,distributed]'
	touch $@

$(VENV)/.installed-interop: pyproject.toml constraints.txt $(NATIVE) $(VENV)/.torch
	$(INSTALL) -c constraints.txt -e '.[test,interop]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt $(NATIVE) $(VENV)/.torch
	$(INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(NATIVE) $(VENV)/.torch
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-floors .venv-newest build dist quickstart outputs
	find . -name '__pycache__' -type d -prune -exec rm -rf {} +
