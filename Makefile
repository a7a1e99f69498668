# Each target sets up all that it needs on a fresh Debian 12; Python's part lives in .venv.

PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BUILD_PACKAGES := python3-venv
LOAD_PACKAGES := gcc libc6-dev libssl-dev
TEST_PACKAGES := sip-tester sipsak baresip-core iproute2 nftables libfaketime $(LOAD_PACKAGES)
BENCH_PACKAGES := util-linux $(LOAD_PACKAGES)
BROWSER_PACKAGES := chromium chromium-driver
FAILOVER_PACKAGES := iproute2 nftables kamailio keepalived $(LOAD_PACKAGES)

SEEDS := 1000
FIRST := 1

.PHONY: run test test-long sim check format bench bench-log bench-export failover clean

# Three nodes on this machine, until Ctrl-C. FRESH=1 starts empty, TLS=1 has them talk under TLS.
run: $(STAMP)
	@exec $(BIN)/python -m sipha.sandbox $(if $(FRESH),--fresh) $(if $(TLS),--tls)

# Whatever runs real processes and networks has the machine to itself.
test: $(STAMP)
	@.ci/packages $(TEST_PACKAGES)
	$(BIN)/python -m pytest -q --numprocesses auto -m "not system and not long"
	$(BIN)/python -m pytest -q -m "system and not long"

test-long: $(STAMP)
	@.ci/packages $(TEST_PACKAGES) $(BROWSER_PACKAGES)
	$(BIN)/python -m pytest -q --numprocesses auto -m "not system"
	$(BIN)/python -m pytest -q -m "system"

# The simulated cluster, from seed FIRST on, until a seed fails or SEEDS have passed.
sim: $(STAMP)
	$(BIN)/python -m tests.cluster_sim.explore --seeds $(SEEDS) --first $(FIRST)

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

# The log beside the library as it is delivered; QUICK=1 for a shorter run.
bench-log: $(STAMP)
	$(BIN)/python -m bench.log $(if $(QUICK),--quick)

# An export of a large table from a follower while phones register; BINDINGS=100000 for a shorter run.
bench-export: $(STAMP)
	@.ci/packages $(BENCH_PACKAGES)
	$(BIN)/python -m bench.export $(if $(BINDINGS),--bindings $(BINDINGS))

# How long phones are unserved when a leader fails, beside keepalived with Kamailio; as root. ROUNDS=3 for a shorter run.
failover: $(STAMP)
	@.ci/packages $(FAILOVER_PACKAGES)
	$(BIN)/python -m bench.failover $(if $(ROUNDS),--rounds $(ROUNDS))

$(STAMP): setup.cfg setup.py pyproject.toml
	@.ci/packages $(BUILD_PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# twistd looks for plugins on sys.path alone: the plain .pth of compat mode puts the checkout there.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --config-settings editable_mode=compat --editable '.[test,check]'
	touch $@

clean:
	rm -rf $(VENV) .run build dist bench/build *.egg-info
