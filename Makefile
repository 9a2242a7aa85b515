# Everything one does with cria's sources, each as one command. `make help` lists them.

MONITOR_FLAGS := -C target-feature=+crt-static -C relocation-model=static

.PHONY: help setup build test test-vm test-vm-full deb rpm pages install demo kubelet conformance bench fuzz clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## install what building and testing need (Debian 12 or 13, as root)
	@tests/setup

build: ## build cria and cria-monitor into target/release
	cargo build --release -p cria
	cargo rustc -p cria-monitor --bin cria-monitor --profile monitor -- $(MONITOR_FLAGS)
	install -m 755 target/monitor/cria-monitor target/release/cria-monitor

test: ## everything: build, lints, unit and integration tests, a kubelet, conformance
	@tests/run

deb: ## package cria for Debian 12 or 13: target/packages/cria_*.deb
	@tests/setup --no-tools
	@$(MAKE) --no-print-directory build
	@packaging/deb/build

rpm: ## package cria for Fedora, RHEL and their kin: target/packages/cria-*.rpm
	@tests/setup --no-tools
	@$(MAKE) --no-print-directory build
	@packaging/rpm/build

pages: ## write the manual pages and completions in packaging/ anew
	@CRIA_WRITE_PAGES=1 cargo test --quiet -p cria pages::

install: ## install what `make build` built (DESTDIR=: below that folder)
	@packaging/install "$(DESTDIR)"

demo: ## a pod's life, shown step by step
	@tests/setup crictl
	@$(MAKE) --no-print-directory build
	@tests/demo

kubelet: setup build ## a real kubelet runs its pods on cria (PEER=containerd: on containerd instead)
	@CRIA_KUBELET_PEER=$(or $(PEER),cria) tests/run kubelet

test-vm: ## the same on real nodes: virtual machines with systemd and cgroup v2 (MINUTES=n)
	@CRIA_VM_MINUTES=$(or $(MINUTES),25) tests/vm/run $(ARGS)

test-vm-full: ## all of that and the whole of critest in there, without a time limit
	@tests/vm/run --machines node,kubelet,conformance $(ARGS)

conformance: setup build ## the CRI conformance suite (PEER=containerd: on containerd instead)
	@CRIA_CONFORMANCE_PEER=$(or $(PEER),cria) tests/run conformance

bench: setup build ## measure cria (PEER=containerd: and containerd beside it)
	@cargo run --quiet --release -p cria-tests --bin bench -- $(if $(PEER),--peer $(PEER)) $(ARGS)

fuzz: ## fuzz what parses foreign bytes, longer than `make test` does (ARGS="TARGET ...")
	@fuzz/run $(ARGS)

clean: ## remove what was built here (the test tools stay in their cache)
	cargo clean
	rm -rf fuzz/target
