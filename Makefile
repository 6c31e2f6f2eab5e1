# SPDX-License-Identifier: Apache-2.0
#
# Every target installs what it needs, from Debian's packages and into .venv, and is quick the second time.
# Works as root, with sudo, and as a user who may use sudo (asked for only where root is needed).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Debian's own interpreter: another one on PATH would not see python3-bpfcc.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin

# bcc compiles the probes; libbpf reads their ring; the rest is for the demo and the tests.
APT_RUN := ca-certificates libbpf1 python3 python3-bpfcc python3-venv
APT_TRY := at cron curl dbus gcc libc6-dev openssh-client openssh-server openssl passwd postgresql strace systemd util-linux
# Clients whose TLS is observed: Go, Java and GnuTLS; node's, unless another node than Debian's is there with its npm.
APT_TRY += default-jdk-headless golang-go golang-github-jackc-pgx-v4-dev golang-github-lib-pq-dev golang-golang-x-mod-dev libgnutls28-dev \
  libpostgresql-jdbc-java libssl-dev $(if $(shell command -v npm),,nodejs node-pg)
# Of these, daemons that tests start by themselves: installing them must not start them, now or at the next boot.
DAEMONS := at:atd cron:cron openssh-server:ssh
POLICY := /usr/sbin/policy-rc.d
CLUSTER_CONF := /etc/postgresql-common/createcluster.d/agentwatch-setup.conf

# The venv is right for one content of pyproject.toml at one place.
STAMP := $(VENV)/.made-for-$(shell { cat pyproject.toml; pwd; } | sha256sum | cut -c1-16)
FUZZ_STAMP := $(STAMP)-fuzz

FUZZ_SECONDS ?= 120
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help setup apt demo test test-unit test-kernel acceptance fuzz lint format bench clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: apt $(STAMP) ## Debian's packages and .venv, with .venv/bin/agentwatch in it

# Debian's PostgreSQL would start a server of its own on 5432 when it is first installed: not asked for here.
# A server that is installed already is left as it is.
apt:
	@missing=(); for package in $(APT_RUN) $(APT_TRY); do \
	  dpkg-query -W -f='$${db:Status-Status}\n' "$$package" 2>/dev/null | grep -qx installed || missing+=("$$package"); \
	done; \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	echo "installing $${missing[*]}"; \
	units=(); \
	for daemon in $(DAEMONS); do \
	  [[ " $${missing[*]} " != *" $${daemon%%:*} "* ]] || units+=("$${daemon#*:}.service"); \
	done; \
	policy=; guard=; \
	trap '[ -z "$$guard$$policy" ] || $(SUDO) rm -f $$guard $$policy' EXIT; \
	if [ $${#units[@]} -gt 0 ] && [ ! -e $(POLICY) ]; then \
	  policy=$(POLICY); \
	  printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee "$$policy" >/dev/null; \
	  $(SUDO) chmod 755 "$$policy"; \
	fi; \
	if [[ " $${missing[*]} " == *" postgresql "* ]] && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then \
	  guard=$(CLUSTER_CONF); \
	  $(SUDO) mkdir -p "$${guard%/*}"; \
	  echo 'create_main_cluster = false' | $(SUDO) tee "$$guard" >/dev/null; \
	fi; \
	$(SUDO) apt-get update -q; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$${missing[@]}"; \
	[ $${#units[@]} -eq 0 ] || $(SUDO) systemctl disable -q "$${units[@]}"

$(STAMP): pyproject.toml | apt
	$(PYTHON) -m venv --system-site-packages $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install -q -e '.[dev]'
	@rm -f $(VENV)/.made-for-*
	@touch $@

$(FUZZ_STAMP): $(STAMP)
	PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install -q -e '.[fuzz]'
	@touch $@

demo: setup ## an agent's backfill on table orders, recorded and shown (root)
	@$(SUDO) docs/demo/run.sh

# Each file's tests stay together; most of the time goes into compiling the probes, by one core for each instance.
test: setup ## every test, the kernel's among them (root)
	$(SUDO) $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-unit: setup ## the tests that need no root
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

test-kernel: setup ## real probes, real servers, real clients (root)
	$(SUDO) $(BIN)/python -m pytest tests/kernel $(PYTEST_ARGS)

acceptance: setup ## at full size: 10,000 pgbench transactions each, 1,000,000 events and rows, 2 GiB, 50 kills (root)
	$(SUDO) env AGENTWATCH_TEST_TRANSACTIONS=10000 AGENTWATCH_TEST_EVENTS=1000000 AGENTWATCH_TEST_KILLS=50 \
	  AGENTWATCH_TEST_DOWNLOAD=2147483648 AGENTWATCH_TEST_ROWS=1000000 AGENTWATCH_TEST_FULL=1 \
	  $(BIN)/python -m pytest tests/kernel -k 'capture or accounting or upheaval or overflow or interest or tls' --timeout=1800 \
	  $(PYTEST_ARGS)

fuzz: setup $(FUZZ_STAMP) ## each fuzz target for FUZZ_SECONDS (default 120)
	@for target in tests/fuzz/fuzz_*.py; do \
	  echo "== $$target"; \
	  $(BIN)/python "$$target" -max_total_time=$(FUZZ_SECONDS) -artifact_prefix="$$(mktemp -d)/"; \
	done

lint: setup ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(wildcard probes/*.c probes/*.h)

format: setup ## rewrite the sources in the form that lint asks for
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard probes/*.c probes/*.h)

bench: setup ## measure, and write docs/performance.md (root)
	$(SUDO) $(BIN)/python -m bench $(BENCH_ARGS)

clean: ## remove what the targets made in this checkout (not Debian's packages)
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
