# Each target sets up all that it needs on a fresh Debian 12; Python's part lives in .venv.

PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BUILD_PACKAGES := python3-venv
LOAD_PACKAGES := gcc libc6-dev libssl-dev
COMPILE_PACKAGES := gcc libc6-dev python3-dev
TEST_PACKAGES := sip-tester sipsak baresip-core curl iproute2 nftables libfaketime keepalived systemd $(LOAD_PACKAGES) \
    $(COMPILE_PACKAGES)
LONG_PACKAGES := mariadb-server postgresql sngrep tshark kamailio kamailio-postgres-modules
BENCH_PACKAGES := util-linux kamailio kamailio-postgres-modules postgresql $(LOAD_PACKAGES)
DEB_PACKAGES := bash-completion build-essential debhelper dh-virtualenv lintian \
    python3-build python3-dev python3-setuptools python3-venv python3-wheel
DEB_TEST_PACKAGES := groff-base mmdebstrap systemd-container
BROWSER_PACKAGES := chromium chromium-driver
FAILOVER_PACKAGES := iproute2 nftables kamailio keepalived $(LOAD_PACKAGES)

COMPILED := $(CURDIR)/build/compiled

SEEDS := 1000
FIRST := 1

.PHONY: run compiled test test-compiled test-long test-deb sim check format bench bench-micro curves figures bench-log bench-export failover deb pins reference clean

# Three nodes on this machine, until Ctrl-C. FRESH=1 starts empty, TLS=1 has them talk under TLS.
run: $(STAMP)
	@exec $(BIN)/python -m sipha.sandbox $(if $(FRESH),--fresh) $(if $(TLS),--tls)

# sipha with its modules compiled, as its wheel has them; what runs with PYTHONPATH=build/compiled takes it from there.
compiled: $(COMPILED)/.built

$(COMPILED)/.built: $(STAMP) $(shell find sipha -name '*.py' -o -name '*.[ch]')
	@.ci/packages $(COMPILE_PACKAGES)
	rm -rf $(COMPILED)
	SIPHA_COMPILE=1 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(COMPILED) .
	touch $@

# Whatever runs real processes and networks has the machine to itself.
test: $(STAMP)
	@.ci/packages $(TEST_PACKAGES)
	$(BIN)/python -m pytest -q --numprocesses auto -m "not system and not long"
	$(BIN)/python -m pytest -q -m "system and not long"

# The same tests, of the compiled modules.
test-compiled: compiled
	PYTHONPATH=$(COMPILED) $(BIN)/python -m pytest -q --numprocesses auto --override-ini "pythonpath=$(COMPILED) ." \
	    -m "not system and not long and not interpreted"

# The long ones stand together: without worksteal one process has nearly all of them.
test-long: $(STAMP) deb test-compiled
	@.ci/packages $(TEST_PACKAGES) $(LONG_PACKAGES) $(DEB_TEST_PACKAGES) $(BROWSER_PACKAGES)
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal -m "not system"
	$(BIN)/python -m pytest -q -m "system"

# The Debian package installed, run, upgraded and purged in a Debian of its own; as root.
test-deb: $(STAMP) deb
	@.ci/packages $(DEB_TEST_PACKAGES)
	$(BIN)/python -m pytest -q tests/package tests/man

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

# sipha beside its peers; QUICK=1 for a shorter run.
bench: $(STAMP) compiled
	@.ci/packages $(BENCH_PACKAGES)
	$(BIN)/python -m bench.run $(if $(QUICK),--quick)

# How the cost of a REGISTER grows with bindings, nodes, contacts, and what comes at once; QUICK=1 for a shorter run.
curves: $(STAMP)
	@.ci/packages util-linux $(LOAD_PACKAGES)
	$(BIN)/python -m bench.curves $(if $(QUICK),--quick)

# Tables and curves of docs/performance.md, of what make bench and make curves have measured.
figures: $(STAMP)
	$(BIN)/python -m bench.page

# What the parts of a REGISTER's way cost.
bench-micro: $(STAMP)
	$(BIN)/python -m pytest -q bench/test_micro.py --benchmark-timer=time.process_time --benchmark-columns=min,median,rounds

# The log beside the library as it is delivered; QUICK=1 for a shorter run.
bench-log: $(STAMP)
	$(BIN)/python -m bench.log $(if $(QUICK),--quick)

# An export of a large table from a follower while phones register; BINDINGS=100000 for a shorter run.
bench-export: $(STAMP)
	@.ci/packages util-linux $(LOAD_PACKAGES)
	$(BIN)/python -m bench.export $(if $(BINDINGS),--bindings $(BINDINGS))

# How long phones are unserved when a leader fails, beside keepalived with Kamailio; as root. ROUNDS=3 for a shorter run.
failover: $(STAMP)
	@.ci/packages $(FAILOVER_PACKAGES)
	$(BIN)/python -m bench.failover $(if $(ROUNDS),--rounds $(ROUNDS))

# The Debian package, built from the source archive, into dist/.
deb: export PATH := /usr/sbin:/usr/bin:/sbin:/bin
deb:
	@.ci/packages $(DEB_PACKAGES)
	rm -rf build/deb
	$(PYTHON) -m build --sdist --no-isolation --outdir build/deb .
	tar --extract --directory build/deb --file build/deb/sipha-*.tar.gz
	cd build/deb/sipha-*/ && dpkg-buildpackage --unsigned-source --unsigned-changes --build=binary
	lintian --allow-root --fail-on error,warning build/deb/sipha_*.changes
	mkdir -p dist
	cp build/deb/sipha_*.deb dist/

# Choose anew the libraries that the Debian package brings, and those that it takes to compile it: the newest that
# setup.cfg allows, with their hashes.
PIP_COMPILE := CUSTOM_COMPILE_COMMAND="make pins" build/pins/bin/pip-compile --quiet --upgrade --generate-hashes \
    --strip-extras --no-emit-index-url --no-emit-find-links
pins: $(STAMP)
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet pip-tools
	$(PIP_COMPILE) --output-file debian/requirements.txt setup.cfg
	$(PIP_COMPILE) --extra compile --allow-unsafe --constraint debian/requirements.txt --output-file debian/build-requirements.txt \
	    setup.cfg

# docs/reference.md, of what the code and etc/sipha.toml say of each key.
reference: $(STAMP)
	$(BIN)/python -m man.reference >docs/reference.md

$(STAMP): setup.cfg setup.py pyproject.toml
	@.ci/packages $(BUILD_PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# twistd looks for plugins on sys.path alone: the plain .pth of compat mode puts the checkout there.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --config-settings editable_mode=compat --editable '.[test,check,bench]'
	touch $@

clean:
	rm -rf $(VENV) .run build dist bench/build *.egg-info
