# moorline: `make demo` shows it, `make test` proves it; both install what they need.

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
BIN := target/$(HOST)/debug

# One build for tests and demo: static, so that the binaries run in containers that hold nothing else.
export CARGO_BUILD_TARGET := $(HOST)
export RUSTFLAGS := -C target-feature=+crt-static
export MOORLINE_BIN := $(CURDIR)/$(BIN)/moorline
export MOORLINE_APP := $(CURDIR)/$(BIN)/app

.PHONY: help demo test soak lint setup build unit lab kubernetes

help:
	@echo 'make demo        see moorline work: a pod, a share, a tunnel, a death (under a minute after the build)'
	@echo 'make test        every test: unit, lab (real NFS), Kubernetes (real API server and kubelet)'
	@echo 'make soak        the whole fault matrix'
	@echo 'make lint        format, clippy, licences and bans'
	@echo 'make unit|lab|kubernetes   one area of the tests'

demo: setup build
	@$(BIN)/lab demo

test: setup build
	@tests/area begin
	@tests/area unit 300 $(MAKE) --no-print-directory unit
	@tests/area lab 900 $(MAKE) --no-print-directory lab
	@tests/area kubernetes 1080 $(MAKE) --no-print-directory kubernetes
	@tests/area end

setup:
	@tests/setup

build:
	@cargo build --workspace --bins

unit:
	@cargo test --workspace

lab: build
	@$(BIN)/lab run
	@$(BIN)/lab run --kernel newer

kubernetes: build
	@tests/kube/run smoke
	@PEERS=1 tests/kube/run one-death

# The whole fault matrix, for under an hour; what every run has of it is in `make lab`.
soak: setup build
	@$(BIN)/lab run --soak --limit 3500 --keep

lint:
	@tests/lint
