# Each target sets up all that it needs on a fresh Debian 12; Python's part lives in .venv.

PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BUILD_PACKAGES := python3-venv
TEST_PACKAGES := sip-tester sipsak baresip-core
BENCH_PACKAGES := gcc libssl-dev util-linux

.PHONY: run test test-long check format bench clean

# Three nodes on this machine, until Ctrl-C. FRESH=1 starts empty.
run: $(STAMP)
	@exec $(BIN)/python -m sipha.sandbox $(if $(FRESH),--fresh)

test: $(STAMP)
	@.ci/packages $(TEST_PACKAGES)
	$(BIN)/python -m pytest -q -m "not long"

test-long: $(STAMP)
	@.ci/packages $(TEST_PACKAGES)
	$(BIN)/python -m pytest -q

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# QUICK=1 for a shorter run.
bench: $(STAMP)
	@.ci/packages $(BENCH_PACKAGES)
	$(BIN)/python -m bench.run $(if $(QUICK),--quick)

$(STAMP): setup.cfg setup.py pyproject.toml
	@.ci/packages $(BUILD_PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# twistd looks for plugins on sys.path alone: the plain .pth of compat mode puts the checkout there.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --config-settings editable_mode=compat --editable '.[test,check]'
	touch $@

clean:
	rm -rf $(VENV) .run build dist bench/build *.egg-info
