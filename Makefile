# Everything one does with cria's sources, each as one command. `make help` lists them.

MONITOR_FLAGS := -C target-feature=+crt-static -C relocation-model=static

.PHONY: help setup build test demo kubelet conformance bench clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## install what building and testing need (Debian 12 or 13, as root)
	@tests/setup

build: ## build cria and cria-monitor into target/release
	cargo build --release -p cria
	cargo rustc -p cria-monitor --bin cria-monitor --profile monitor -- $(MONITOR_FLAGS)
	install -m 755 target/monitor/cria-monitor target/release/cria-monitor

test: ## everything: build, lints, unit and integration tests, a kubelet, conformance
	@tests/run

demo: ## a pod's life, shown step by step
	@tests/setup crictl
	@$(MAKE) --no-print-directory build
	@tests/demo

kubelet: setup build ## a real kubelet runs its pods on cria (PEER=containerd: on containerd instead)
	@CRIA_KUBELET_PEER=$(or $(PEER),cria) tests/run kubelet

conformance: setup build ## the CRI conformance suite (PEER=containerd: on containerd instead)
	@CRIA_CONFORMANCE_PEER=$(or $(PEER),cria) tests/run conformance

bench: setup build ## measure cria (PEER=containerd: and containerd beside it)
	@cargo run --quiet --release -p cria-tests --bin bench -- $(if $(PEER),--peer $(PEER)) $(ARGS)

clean: ## remove what was built here (the test tools stay in their cache)
	cargo clean
