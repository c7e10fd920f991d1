# moorline: `make demo` shows it, `make test` proves it; both install what they need.

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
BIN := target/$(HOST)/debug

# One build for tests and demo: static, so that the binaries run in containers that hold nothing else.
export CARGO_BUILD_TARGET := $(HOST)
export RUSTFLAGS := -C target-feature=+crt-static
export MOORLINE_BIN := $(CURDIR)/$(BIN)/moorline
export MOORLINE_APP := $(CURDIR)/$(BIN)/app

.PHONY: help demo test soak soak-mutations seeds bench lint setup build unit lab lab-faults lab-others kubernetes

help:
	@echo 'make demo        see moorline work: a pod, a share, a tunnel, a death (under a minute after the build)'
	@echo 'make test        every test: unit, lab (real NFS), Kubernetes (real API server and kubelet)'
	@echo 'make soak        the whole fault matrix, every kill point, a million seeds of the simulator (make seeds)'
	@echo 'make soak-mutations   that the rows of the matrix can fail'
	@echo 'make bench       what it costs, beside limits and peers; AREA=mount|kubernetes one, RECORD=1 for docs/BENCHMARKS.md'
	@echo 'make lint        format, clippy, licences and bans'
	@echo 'make unit|lab|kubernetes   one area of the tests'

demo: setup build
	@$(BIN)/lab demo

test: setup build
	@tests/area begin
	@tests/area unit 300 $(MAKE) --no-print-directory unit
	@tests/area lab 900 $(MAKE) --no-print-directory lab
	@tests/area kubernetes 1800 $(MAKE) --no-print-directory kubernetes
	@tests/area end

setup:
	@tests/setup

build:
	@cargo build --workspace --bins

unit:
	@cargo test --workspace

# A guest has one CPU, so two run side by side, the second kernel's after the matrix; each tells what it did when it is done.
lab: build
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lab-faults lab-others

lab-faults:
	@$(BIN)/lab run fault_
	@$(BIN)/lab run --kernel newer

lab-others:
	@$(BIN)/lab run --skip fault_

kubernetes: build
	@tests/kube/run

# The whole fault matrix, every kill point and a million seeds of the simulator, each part under an hour; what every run has
# of them is in `make lab` and `make unit`. What passed already, as things are, is not run again: what is on record of it
# makes docs/FAULTS.md.
soak: setup build
	@tests/soak

# Goes on where it was interrupted, and begins anew for another commit.
seeds:
	@tests/seeds

# Each fault's rows against an agent that was changed for the worse: they must fail.
soak-mutations: setup build
	@tests/mutations/run

# A bench of a debug build says nothing: this is the profile that the image is built with. It takes some minutes, once.
bench: RELEASE := target/$(HOST)/release
bench: setup
	@cargo build --release --workspace --bins
	@MOORLINE_BIN=$(RELEASE)/moorline MOORLINE_APP=$(RELEASE)/app $(RELEASE)/lab bench $(AREA) --kernel newer $(if $(RECORD),--publish)

lint:
	@tests/lint
