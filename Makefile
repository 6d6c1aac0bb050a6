# One command each. Everything happens in .venv and build/; the only thing asked of the machine is Python >= 3.11 with its headers and
# library, a C compiler and make. tools/prepare.py installs, CMake builds, and both do nothing when nothing changed.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
PORT ?= 6379
ONCE ?=
ARGS ?=
BUILD_TYPE ?= Release
EXTRAS := all,cli,server
export TORCH_INDEX ALLOW_CUDA

VENV := .venv
PY := $(VENV)/bin/python
CMAKE = $(shell command -v cmake || echo $(VENV)/bin/cmake)
build_dir = build/$(shell echo $(BUILD_TYPE) | tr A-Z a-z)
# A sanitizer build gets an environment of its own: REDISAI_MODULE=build/asan/env/redisai.so
placed = $(if $(filter Release,$(BUILD_TYPE)),-DREDISAI_TREE=$(CURDIR)/redisai_py,-DREDISAI_ENV=$(CURDIR)/$(build_dir)/env)

.DEFAULT_GOAL := help
.PHONY: soak leaks valgrind seeded fuzz help run test test-asan test-tsan check format bench docs dist build prepare clean clean-venv

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Settings: PORT=6379  ONCE=1 (run: stop after the tour)  ARGS='-k name' (test)  BUILD_TYPE=ASAN|TSAN (build)"
	@echo "          PYTHON=python3.11  TORCH_INDEX=<index of CPU builds>  ALLOW_CUDA=1"

run: port build ## Install, build, start a server on PORT with example models, and show one inference of each
	@$(PY) examples/run.py --port $(PORT) $(if $(ONCE),--once)

port:
	@$(PYTHON) tools/port.py $(PORT)

test: EXTRAS := all,test
test: build ## Install, build and run all tests
	@$(PY) tools/servers.py
	@$(PY) tools/real_models.py
	$(PY) -m pytest $(ARGS)

test-asan: BUILD_TYPE := ASAN
test-tsan: BUILD_TYPE := TSAN
test-asan test-tsan: EXTRAS := all,test
test-asan: build ## The tests on real servers, under AddressSanitizer and UndefinedBehaviorSanitizer
	$(sanitized)
test-tsan: build ## The tests on real servers, under ThreadSanitizer
	$(sanitized)

# Valkey and other servers are left out: see tools/sanitized-server. A report fails the run although every test passed.
define sanitized
rm -f $(build_dir)/report.*
SANITIZER=$(notdir $(build_dir)) REDISAI_TEST_SERVER=$(CURDIR)/tools/sanitized-server REDISAI_MODULE=$(CURDIR)/$(build_dir)/env/redisai.so \
  $(PY) -m pytest tests/server --ignore=tests/server/test_server_matrix.py $(ARGS); status=$$?; \
  ! grep -s -A 40 -E 'ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:' $(build_dir)/report.* && exit $$status
endef

check: EXTRAS := all,dev,test
check: build ## Formatting, lint, types and C warnings
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: EXTRAS := all,dev,test
format: prepare ## Format the Python sources
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

soak: EXTRAS := all,test
soak: build ## Run a long loop: kill -9, cut links, broken files, forks, stops, clusters (ARGS='kill 1000'; names: tests/soak/loops.py)
	cd tests && ../$(PY) -m soak.loops $(or $(ARGS),kill 100)

fuzz: EXTRAS := all,test,fuzz
fuzz: build ## Run a fuzzer long (ARGS='restore 1000000', or ARGS=list)
	cd tests && ../$(PY) -m fuzz.run $(or $(ARGS),list)

leaks: EXTRAS := all,test
leaks: build ## Look for leaks in every command, every error and every backend (ARGS='100000 1000': turns, cycles)
	cd tests && PYTHONPATH=server ../$(PY) -m soak.leaks $(ARGS)

valgrind: EXTRAS := all,test
valgrind: prepare ## The C files that know neither Redis nor Python, under valgrind
	@command -v valgrind >/dev/null || { echo "valgrind is not installed. On Debian and Ubuntu: apt-get install valgrind"; exit 1; }
	MEMCHECK_STEPS=20000 $(PY) -m pytest -q tests/unit/test_memcheck.py $(ARGS)

seeded: EXTRAS := all,cli,test
seeded: build ## Put each deliberate defect in and see that the tests notice it (ARGS='name ...'; all of them take minutes)
	cd tests && ../$(PY) -m seeded.check $(ARGS)

bench: EXTRAS := all,bench,test
bench: build ## Run the benchmarks
	$(PY) -m benchmarks $(ARGS)

docs: EXTRAS := docs
docs: prepare ## Build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

dist: ## Build what a release publishes into dist/, and try it in a fresh environment
	@$(PYTHON) tools/release.py

build: prepare ## Build the module into redisai_py/ (warnings are errors)
	@$(CMAKE) -S . -B $(build_dir) -DCMAKE_BUILD_TYPE=$(BUILD_TYPE) -DPython_EXECUTABLE=$(CURDIR)/$(PY) $(placed) \
	  >$(build_dir).log 2>&1 || { cat $(build_dir).log; exit 1; }
	@$(CMAKE) --build $(build_dir) --parallel 2 >$(build_dir).log 2>&1 || { cat $(build_dir).log; exit 1; }

prepare:
	@$(if $(PYTHON),,echo "No Python 3.11 to 3.13 was found. On Debian and Ubuntu: apt-get install python3 python3-venv python3-dev"; exit 1)
	@mkdir -p build
	@$(PYTHON) tools/prepare.py --extras $(EXTRAS)

clean: ## Remove what was built
	rm -rf build dist redisai_py/*.so redisai_py/redisai.python .pytest_cache .ruff_cache .mypy_cache .hypothesis

clean-venv: ## Remove the environment
	rm -rf $(VENV)
