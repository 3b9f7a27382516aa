# `make demo` and `make test` set up all they need in .venv, once; `make clean` undoes it.
# PYTHON=… chooses the Python to build .venv from.

bin := .venv/bin
demo := $(bin)/pytest -p pytest_anchor -n 2 -v examples

.PHONY: demo test coverage bench setup clean

demo: setup
	$(demo) --anchor-local
	@if [ -n "$${ANCHORBROWSER_API_KEY:-$${ANCHOR_API_KEY:-}}" ]; then \
	  echo "Again, in the cloud, at $${ANCHORBROWSER_BASE_URL:-Anchor itself}:"; set -x; $(demo); \
	else \
	  echo "No line of it changes for the cloud: set ANCHORBROWSER_API_KEY, and this runs there as well."; \
	fi

test: setup
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/pytest -n 5 --dist worksteal

# The same tests, which take longer so.
coverage: setup
	$(bin)/coverage erase
	$(bin)/coverage run -m pytest -n 5 --dist worksteal
	@$(bin)/coverage combine --quiet
	$(bin)/coverage report

bench: setup
	$(bin)/python benchmarks

setup: .venv/ready
	@$(set_up_chromium)

clean:
	rm -rf .venv .nox .coverage* .mypy_cache .ruff_cache .pytest_cache .pytest_anchor dist

.venv/ready: pyproject.toml
	@$(find_python); \
	echo "Setting up .venv with $$($$python --version)"; \
	$$python -m venv --clear .venv
	$(bin)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

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

# The local backend's own search says whether there is a Chromium, and how to get one.
find_chromium = $(bin)/python -c 'import sys; from pytest_anchor.local import chromium; \
  sys.tracebacklimit = 0; chromium.find(None)'

define set_up_chromium
if ! said=$$($(find_chromium) 2>&1); then \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo 'Chromium is missing: installing it with apt-get'; \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq chromium </dev/null; \
  else \
    echo "$$said"; exit 1; \
  fi; \
fi >&2
endef
