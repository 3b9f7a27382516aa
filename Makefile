# `make demo` and `make test` set up all they need in .venv, once; `make clean` undoes it.
# PYTHON=… chooses the Python to build .venv from.

bin := .venv/bin
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --editable
demo := pytest -n 2 examples/tea_shop
# The tests wait as much as they compute.
workers := $(shell cpus=$$(getconf _NPROCESSORS_ONLN); echo $$((cpus < 8 ? 4 * cpus : 32)))
in_parallel := -n $(workers) --dist worksteal

.PHONY: demo test types bytecode fast coverage bench setup chromium clean

# The demo does without the plugins that `make test` installs for its own use, and without their names.
demo: export PYTEST_ADDOPTS := --no-header -p no:playwright-asyncio -p no:asyncio -p no:django -p no:flask -p no:run-parallel
demo: .venv/demo chromium
	@echo "examples/tea_shop is a suite for pytest-playwright that starts its own server and says nothing of Anchor."
	@$(call run_demo,One session for each worker:,$(demo) --anchor-local --anchor-playwright worker)
	@$(call run_demo,One session for each test:,$(demo) --anchor-local --anchor-playwright test)
	@if [ -n "$${ANCHORBROWSER_API_KEY:-$${ANCHOR_API_KEY:-}}" ]; then \
	  $(call run_demo,The same in the cloud at $${ANCHORBROWSER_BASE_URL:-Anchor itself}:,$(demo) --anchor-playwright test); \
	else \
	  echo; echo "No line of it changes for the cloud: set ANCHORBROWSER_API_KEY, and this runs there as well."; \
	fi

run_demo = echo; echo "$(1)"; echo "$$ $(2)"; $(bin)/$(2)

test: setup
	$(bin)/ruff check
	$(bin)/ruff format --check
	@$(MAKE) --no-print-directory --jobs 2 types bytecode
	$(bin)/pytest $(in_parallel)

types: .venv/dev
	$(bin)/mypy

# pytest compiles the tests once, for all workers.
bytecode: .venv/dev
	@echo "$(bin)/pytest --collect-only"
	@said=$$($(bin)/pytest --collect-only -q) || { echo "$$said"; exit 1; }

# Without the tests that need real processes or a browser; tests=… chooses among them.
tests := tests/test_*.py
fast: .venv/demo
	$(bin)/pytest -n 4 -m 'not slow' $(tests)

# The same tests, which take longer so.
coverage: setup
	$(bin)/coverage erase
	$(bin)/coverage run -m pytest $(in_parallel)
	@$(bin)/coverage combine --quiet
	$(bin)/coverage report

bench: setup
	$(bin)/python benchmarks

setup: chromium .venv/dev

clean:
	rm -rf .venv .nox .coverage* .mypy_cache .ruff_cache .pytest_cache .pytest_anchor dist

# In two steps, because the demo needs less than half of it.
.venv/demo: pyproject.toml
	@$(find_python); \
	echo "Setting up .venv with $$($$python --version)"; \
	$$python -m venv --clear .venv
	$(install) '.[local,test-fast]' pytest-playwright
	@touch $@

.venv/dev: .venv/demo
	$(install) '.[dev]'
	@touch $@

# The local backend itself says whether Chromium can run here, and how to get it.
chromium: .venv/demo
	@$(chromium_module) chromium.temp_folder()'
	@$(set_up_chromium)

# Leaves a Python that is new enough and can build a virtual environment in $python.
define find_python
for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10 none; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break; \
done; \
if [ $$python = none ]; then \
  echo 'Python 3.10 or newer is needed, and none is on the PATH. Install it, or name one: make PYTHON=/path/to/python3'; \
  echo '  Debian, Ubuntu:  sudo apt-get install python3 python3-venv'; \
  echo '  Fedora:          sudo dnf install python3'; \
  echo '  macOS:           brew install python'; \
  exit 1; \
fi >&2; \
if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
  echo "$$python cannot build a virtual environment: its venv or ensurepip module is missing. Install it:"; \
  echo '  Debian, Ubuntu:  sudo apt-get install python3-venv'; \
  exit 1; \
fi >&2
endef

chromium_module := $(bin)/python -c 'import sys; from pytest_anchor.local import chromium; sys.excepthook = lambda *error: print(error[1]);
find_chromium := $(chromium_module) chromium.find(None)'
# What the packages recommend is a desktop, all but the sandbox, which who is not root may need.
# The shell starts with a fifth of the CPU; Debian has it, not every relative of Debian's.
apt_install := apt-get install -qq --no-install-recommends
install_chromium := $(apt_install) chromium-headless-shell chromium-sandbox || $(apt_install) chromium chromium-sandbox

define set_up_chromium
said=$$($(find_chromium) 2>&1) || { \
  [ -z "$${PYTEST_ANCHOR_CHROMIUM-}" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
  echo 'Chromium is missing: $(install_chromium)' && \
  export DEBIAN_FRONTEND=noninteractive && \
  { { apt-get update -qq && { $(install_chromium); }; } </dev/null >.venv/apt.log 2>&1 || cat .venv/apt.log; } && \
  said=$$($(find_chromium) 2>&1); \
} || { echo "$$said"; exit 1; }
endef
