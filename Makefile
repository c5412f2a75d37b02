# Every target builds the environment it needs and nothing has to be installed by hand, except
# Python itself (3.11 or newer, with venv). `make PYTHON=python3.12 test` uses another one.

PYTHON ?= python3
# What the tests with real models need. It is large and optional: `make test TORCH=` leaves it out.
TORCH ?= torch==2.13.0
# Further arguments for pytest: `make test ARGS="-k checkout"`.
ARGS ?=

# An environment is rebuilt when pyproject.toml or the interpreter changes, not otherwise.
KEY := $(shell { cat pyproject.toml; echo '$(PYTHON)'; } | cksum | cut -d ' ' -f 1)
DEV := .venv/.installed-$(KEY)
DEMO := .demo/venv/.installed-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help demo test check bench format clean torch

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## Train a small model twice and look at what was recorded (no torch, about a minute)
	@PATH="$(CURDIR)/.demo/venv/bin:$$PATH" bash scripts/demo.sh

test: $(DEV) torch ## Run the tests
	.venv/bin/python -m pytest -n 2 $(ARGS)

check: $(DEV) ## Lint, check the format and the types, then run the tests: what CI runs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@$(MAKE) --no-print-directory test

bench: $(DEV) torch ## Run the benchmarks
	@for script in $(sort $(wildcard benchmarks/bench_*.py)); do \
		echo "== $$script"; .venv/bin/python "$$script" || exit 1; \
	done

format: $(DEV) ## Format the code and fix what ruff can fix
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## Remove the environments, the caches and what was built
	rm -rf .venv .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

torch: $(DEV)
	@.venv/bin/python -c 'import sys; from importlib.util import find_spec; sys.exit(not find_spec("torch"))' \
	|| { test -n '$(TORCH)' && .venv/bin/python -m pip install --quiet '$(TORCH)'; } \
	|| echo 'torch is not installed: the tests that need it will be skipped, and say so.'

$(DEV):
	$(call environment,.venv,dev)

$(DEMO):
	$(call environment,.demo/venv,examples)

# $(call environment,directory,extra): a virtual environment with this project and one of its extras;
# made anew when there is none or it is of another Python. Debian's Python cannot put pip into one
# without the package python3-venv; the pip that is there can.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: try make PYTHON=python3.12")'
@echo 'Preparing $(1) (once) ...'
@grep -qs "^version = $$($(PYTHON) -c 'import platform; print(platform.python_version())')$$" '$(1)/pyvenv.cfg' \
	|| $(PYTHON) -m venv --clear '$(1)' 2>/dev/null \
	|| { $(PYTHON) -m venv --clear --without-pip '$(1)' && $(PYTHON) -m pip --python '$(1)/bin/python' install --quiet pip; } \
	|| { rm -rf '$(1)'; exit 1; }
@'$(1)/bin/python' -m pip install --quiet --editable '.[$(2)]'
@rm -f '$(1)'/.installed-*
@touch '$@'
endef
