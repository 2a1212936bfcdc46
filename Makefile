# Everything a person or CI does with this tree. On a machine without what is needed, `make
# install-deps` (which `test`, `demo` and `bench` run first) asks apt for what is missing and for no more.

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
CI_BIN := $(CARGO_TARGET_DIR)/ci
RELEASE_BIN := $(CARGO_TARGET_DIR)/release
TEST_SCALE ?= 5
SECONDS ?= 600
DEMO_DIR ?= /var/tmp
BENCH_DIR ?= /var/tmp

# Where `install` puts things, and the programs that it and `deb` take.
PREFIX ?= /usr/local
DESTDIR ?=
BIN ?= $(RELEASE_BIN)

.PHONY: help build install deb test test-rust test-simulator test-fuzz test-interop test-guest test-demo demo bench bench-metadata bench-guest check fuzz long uml install-deps clean

help:
	@echo 'make build         release binaries in target/release'
	@echo 'make install       what was built, man pages, completions, units (PREFIX=/usr/local, DESTDIR=)'
	@echo 'make deb           a Debian package, in target/debian'
	@echo 'make test          every test: Rust, other programs and the kernel against ours, a small demo'
	@echo 'make demo          a PostgreSQL database, a snapshot, two clones of it (SCALE=70, DEMO_DIR=/var/tmp)'
	@echo 'make bench         our figures beside every peer (BENCH_DIR=/var/tmp)'
	@echo 'make bench-metadata check, dump, repair and restore beside thin-provisioning-tools'
	@echo 'make bench-guest   our ublk devices beside the kernel and others, in the tests'"'"' guest'
	@echo 'make check         format, lints, documentation'
	@echo 'make fuzz          all fuzz targets, for long (SECONDS=600 each)'
	@echo 'make long          the tests that take long, in their long form'
	@echo 'make uml           the fast guest that `make long` prefers: user-mode Linux, built once'
	@echo 'make install-deps  what the tests need, from apt, if it is missing'

build:
	cargo build --release --bins

install:
	BIN=$(BIN) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) packaging/install.sh

deb: build
	BIN=$(RELEASE_BIN) OUT=$(CARGO_TARGET_DIR)/debian packaging/deb.sh

install-deps:
	@tests/install-deps.sh

# One profile for all of it: optimised, with assertions and overflow checks.
test: install-deps
	cargo build --workspace --profile ci --bins
	$(MAKE) --no-print-directory test-rust
	$(MAKE) --no-print-directory test-simulator
	$(MAKE) --no-print-directory test-fuzz
	$(MAKE) --no-print-directory test-interop
	$(MAKE) --no-print-directory test-guest
	$(MAKE) --no-print-directory test-demo

test-rust:
	cargo test --workspace --profile ci

# Other crates than with `--workspace`: what the simulator sees and breaks in the engine is in no other build.
SIMULATE := cargo run -p tests --profile ci --features probes --bin simulate --
SIMULATED_SECONDS ?= 50

test-simulator:
	$(SIMULATE) run --seconds $(SIMULATED_SECONDS)
	$(SIMULATE) exhaustive --length 2 --one-of 16
	$(SIMULATE) latent --seeds 1..1000
	$(SIMULATE) sabotage --starts 1 --seeds-max 20000

# The stored corpus and a few seconds of new inputs for each fuzz target.
test-fuzz:
	fuzz/run.py --seconds 5

test-interop:
	THINCTL=$(CI_BIN)/thinctl tests/run.sh

# dm-thin, LVM and the kernel's NBD, in an emulated guest. Skipped, and said so, where none can run;
# GUEST_REQUIRED=1 makes that a failure.
test-guest:
	THINCTL=$(CI_BIN)/thinctl tests/guest/run.sh

test-demo:
	THINCTL=$(CI_BIN)/thinctl SCALE=$(TEST_SCALE) demo/demo.sh $(DEMO_DIR)

demo: install-deps build
	THINCTL=$(RELEASE_BIN)/thinctl demo/demo.sh $(DEMO_DIR)

bench: install-deps build
	THINCTL=$(RELEASE_BIN)/thinctl perf/bench.py --dir $(BENCH_DIR)

bench-metadata: install-deps build
	THINCTL=$(RELEASE_BIN)/thinctl perf/metadata_tools.py --dir $(BENCH_DIR)

bench-guest: install-deps build
	THINCTL=$(RELEASE_BIN)/thinctl perf/guest.py

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p fuzz --features libfuzzer -- -D warnings --cfg fuzzing
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

fuzz: install-deps
	fuzz/run.py --seconds $(SECONDS)
	fuzz/compare.py

# The kernel's tests run in user-mode Linux where `make uml` has built it, else in QEMU.
long: install-deps
	cargo test --workspace --profile ci -- --include-ignored
	$(SIMULATE) run --seconds 1800 --all-marks --twice-one-of 1
	$(SIMULATE) latent --seeds 1..100000
	$(SIMULATE) exhaustive --length 2
	$(SIMULATE) exhaustive --length 3 --one-of 16
	$(SIMULATE) sabotage --starts 5 --minimise
	THINCTL=$(CI_BIN)/thinctl LONG=1 tests/run.sh
	THINCTL=$(CI_BIN)/thinctl LONG=1 GUEST=uml tests/guest/run.sh

uml:
	tests/guest/vm --build-uml

clean:
	cargo clean
