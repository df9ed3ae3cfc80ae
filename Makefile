SHELL := /bin/bash
export PATH := $(CURDIR)/build/servers/usr/bin:$(PATH)
.DEFAULT_GOAL := help
PYTHON ?= python3
GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
OUT ?= build/gpu-session
VENV := .venv
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' clients/python/kvdepot/version.py)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
# Of what pip says: the downloads that take a while, and the installation.
PIP_STEPS := sed -unE 's/^ *Downloading ([^-]+-[^-]+)-.*[(]([0-9.]+ MB)[)]/  downloading \1, \2/p; s/^Installing collected.*/  installing/p'

.PHONY: help demo demo-cluster demo-transformers demo-model run mooncake test-servers sglang-wheel test test-full test-all check proto docs image gpu-wheels gpu-session gpu-dry-run e2e-vllm bench bench-peer clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# Modules are compiled when they are imported, and not all of them now: that saves time and 25 MB.
$(VENV)/.installed-server: pyproject.toml constraints.txt
	@echo "setting up $(VENV): 41 MB to download, 170 MB on disk (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(subst --quiet,,$(PIP)) --no-compile --editable '.[server]' | $(PIP_STEPS)
	@touch $@

$(VENV)/.installed: $(VENV)/.installed-server
	@echo "installing what the checks and tests need, 470 MB (once)"
	@$(PIP) --editable '.[server,dev]'
	@$(PIP) --no-deps --ignore-requires-python helm-sdkpy  # it asks for 3.12 and runs on 3.11
	@touch $@

# The exact version comes first: any other request may take several GB of CUDA packages (see constraints.txt).
$(VENV)/.installed-torch: $(VENV)/.installed-server
	@echo "installing torch, 850 MB (once)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.installed-torch
	@echo "installing transformers, 130 MB (once)"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.installed-cuda: $(VENV)/.installed
	@echo "installing CuPy, NVRTC and a disassembler, 520 MB (once)"
	@$(PIP) --editable '.[cuda-check]'
	@touch $@

# The generator wants an older protobuf than the server runs on, hence a venv of its own.
.venv-proto/.installed: pyproject.toml constraints-proto.txt
	@test -x .venv-proto/bin/python || $(PYTHON) -m venv .venv-proto
	@.venv-proto/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints-proto.txt grpcio-tools mypy-protobuf
	@touch $@

demo: $(VENV)/.installed-server ## two engines share a prompt through the depot: 20 s and 172 MB with the set-up
	@$(BIN)/kvdepot demo

# The servers that are missing and can't be fetched here are left out.
demo-cluster: $(VENV)/.installed-server ## three depots share Valkey and Mooncake, engines move between them, one node is killed: a minute
	@command -v valkey-server >/dev/null || command -v redis-server >/dev/null || $(MAKE) --no-print-directory build/servers/.installed-redis || echo "Redis can't be fetched here"
	@$(MAKE) --no-print-directory $(VENV)/.installed-mooncake || echo "Mooncake can't be installed here"
	@$(BIN)/python -m examples.cluster

demo-transformers: $(VENV)/.installed-demo ## the same with a Llama of transformers: 1.2 GB to install, 5 GB where torch comes with CUDA
	@$(BIN)/kvdepot demo --decoder transformers

demo-model: $(VENV)/.installed-torch ## train the demo's model again: a quarter of an hour on one core
	@$(BIN)/python -m examples.demo.train --out examples/demo/model.npz

run: $(VENV)/.installed-server ## start the server
	@$(BIN)/kvdepot serve

# Chromium without a window, and the libraries of it that a small Debian lacks.
TEST_PACKAGES := prometheus chromium-headless-shell chromium-common libasyncns0 libdouble-conversion3 libflac12 \
  libharfbuzz-subset0 libminizip1 libmp3lame0 libmpg123-0 libogg0 libopenh264-7 libopus0 libpulse0 libsndfile1 \
  libvorbis0a libvorbisenc2 libxnvctrl0

build/servers/.installed-chromium:
	@mkdir -p $(@D) && cd $(@D) && apt-get -qq -o APT::Sandbox::User=root download $(TEST_PACKAGES) && for each in *.deb; do dpkg -x $$each .; done && rm *.deb
	@touch $@

# Redis's server and the libraries of it that a small Debian lacks.
build/servers/.installed-redis:
	@mkdir -p $(@D)/redis && cd $(@D)/redis && apt-get -qq -o APT::Sandbox::User=root download redis-server redis-tools libjemalloc2 liblzf1 && for each in *.deb; do dpkg -x $$each ..; done && rm -r ../redis
	@touch $@

# A server that speaks S3.
.venv-servers/.installed: tests/servers/requirements.txt
	@test -x .venv-servers/bin/python || $(PYTHON) -m venv .venv-servers
	@.venv-servers/bin/python -m pip --disable-pip-version-check --quiet install --requirement tests/servers/requirements.txt
	@touch $@

# Mooncake's client and master, and the libraries of them that a small Debian lacks, where the package looks for its own.
MOONCAKE := $(VENV)/lib/python*/site-packages
$(VENV)/.installed-mooncake: $(VENV)/.installed-server
	@echo "installing Mooncake, 25 MB (once)"
	@$(PIP) --editable '.[mooncake]'
	@mkdir -p build/mooncake && cd build/mooncake && apt-get -qq -o APT::Sandbox::User=root download libibverbs1 libnl-3-200 libnl-route-3-200 libnuma1 && for each in *.deb; do dpkg -x $$each .; done
	@cp -P build/mooncake/lib/*/*.so.* build/mooncake/usr/lib/*/*.so.* $(MOONCAKE)/mooncake_transfer_engine_non_cuda.libs && rm -r build/mooncake
	@touch $@

mooncake: $(VENV)/.installed-mooncake ## start Mooncake's master on this machine, for depots with --l2 'mooncake://127.0.0.1:50051?segment=1GiB'
	@echo "a depot uses it with: $(BIN)/kvdepot serve --l2 'mooncake://127.0.0.1:50051?segment=1GiB'"
	@exec $(MOONCAKE)/mooncake/mooncake_master --rpc_address 127.0.0.1 --rpc_port 50051 --metrics_host 127.0.0.1 --metrics_port 9003 --client_ttl 5 --minloglevel 1 --logtostderr

test-servers: build/servers/.installed-chromium build/servers/.installed-redis .venv-servers/.installed $(VENV)/.installed-mooncake ## fetch the servers that tests start, 205 MB, without installing them: Prometheus, Chromium, Redis, moto, Mooncake. Without them some tests are skipped

# SGLang's storage classes, which tests import from its wheel without installing SGLang.
sglang-wheel: $(VENV)/.installed ## fetch SGLang's wheel, 39 MB, for the tests of its storage backend. Without it they are skipped
	@$(BIN)/python -c 'from tests.fakes.sglang_wheel import wheel_modules; wheel_modules()'

test: $(VENV)/.installed ## run the tests that need neither torch nor CuPy: half an hour on two cores, 630 MB to install
	@$(BIN)/python -m pytest -m "not gpu and not slow"

test-full: $(VENV)/.installed $(VENV)/.installed-demo $(VENV)/.installed-cuda ## run the tests with torch and CuPy, as CI does: half an hour on two cores, 2.1 GB to install
	@$(BIN)/python -m pytest -m "not gpu and not slow"

test-all: $(VENV)/.installed $(VENV)/.installed-demo $(VENV)/.installed-cuda ## run the tests, the long ones too
	@$(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/.installed $(VENV)/.installed-demo .venv-proto/.installed ## lint, types, contract, freshness of the stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@protos/generate.sh build/stubs && diff -r build/stubs/kvdepot/v1 clients/python/kvdepot/v1 -x __pycache__ -x __init__.py

proto: .venv-proto/.installed ## generate the stubs
	@protos/generate.sh clients/python

docs: $(VENV)/.installed ## write what is generated from the code: reference pages, the chart's schema and README, the dashboard, the blocking client
	@$(BIN)/python -m tools.generate

image: ## build the images kvdepot:VERSION, for CPUs, and kvdepot:VERSION-cuda
	@docker build --target cpu --tag kvdepot:$(VERSION) .
	@docker build --target cuda --tag kvdepot:$(VERSION)-cuda .

gpu-wheels: ## fetch the packages that a machine with a GPU lacks, to carry them there: build/gpu-wheels
	@$(PYTHON) -m tools.gpu_session.packages build/gpu-wheels --python $(GPU_PYTHON_VERSION)

gpu-session: ## prove and measure everything on a GPU, in eight minutes: OUT=folder, STEPS="runs small" for some of it
	@$(GPU_PYTHON) -m tools.gpu_session --out $(OUT) $(if $(STEPS),--steps $(STEPS))

gpu-dry-run: $(VENV)/.installed $(VENV)/.installed-demo ## run every step of the GPU session on a simulated card
	@$(BIN)/python -m tools.gpu_session --out $(OUT) --dry-run $(if $(STEPS),--steps $(STEPS))

# Real vLLM wants a venv of its own, 3 GB.
.venv-vllm/.installed: tests/e2e_vllm/install.py
	@echo "setting up .venv-vllm, some minutes (once)"
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python tests/e2e_vllm/install.py "$$(grep '^torch==' constraints.txt)"
	@touch $@

e2e-vllm: $(VENV)/.installed .venv-vllm/.installed ## real vLLM engines share a real server, on the CPU: a quarter of an hour
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.e2e_vllm .venv-vllm/bin/python

bench: $(VENV)/.installed ## run the benchmarks
	@$(BIN)/python -m benchmarks

.venv-peer/.installed: benchmarks/peer/requirements.txt
	@echo "setting up .venv-peer (once, 1.9 GB)"
	@test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	@.venv-peer/bin/python -m pip --disable-pip-version-check --quiet install "$$(grep '^torch==' constraints.txt)"
	@.venv-peer/bin/python -m pip --disable-pip-version-check --quiet install --requirement benchmarks/peer/requirements.txt
	@touch $@

bench-peer: $(VENV)/.installed ## run the benchmarks beside LMCache's server, where it can be installed
	@mkdir -p build
	@if $(MAKE) --no-print-directory .venv-peer/.installed 2>build/peer-install.log; then $(BIN)/python -m benchmarks.peer; \
	else echo "not measured: LMCache can't be installed here ($$(grep -m1 ERROR build/peer-install.log), build/peer-install.log)"; fi

clean: ## remove what was built
	@rm -rf build $(VENV) .venv-proto .venv-peer .venv-servers .venv-vllm
