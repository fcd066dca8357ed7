# Everything happens in $(VENV); a stamp file there says which step is done, so that a second run
# of any target is quick. The package is installed editable: Python files need nothing more, a
# change of compiled sources compiles those again, and a change of what is packaged installs again.

PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# As in the [build-system] tables of pyproject.toml and clients/python/pyproject.toml.
BUILD_TOOLS := 'setuptools>=77' wheel 'cython>=3.1' 'numpy>=2' 'grpcio-tools>=1.60'
KERNELS := $(wildcard kernels/*.pyx kernels/*.pxd kernels/csrc/*.[ch])
PACKAGING := setup.py pyproject.toml \
	$(wildcard protos/*.proto clients/python/pyproject.toml clients/python/setup.py)

.PHONY: help build test demo lint check-deploy soak-reload reliability soak soak-long fuzz soak-engine sanitize check-native check-aarch64 wheel bench bench-quick bench-layers bench-serving bench-training clean distclean
.DELETE_ON_ERROR:

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=python3.12 (to make the environment with), VENV=.venv, BENCH_ARGS=…'

build: $(VENV)/.installed  ## make the environment, compile, install

# Whole files side by side, so that a file's tests share its servers; the longest first.
test: $(VENV)/.installed-test  ## install what the tests need, run them
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak-reload: $(VENV)/.installed-test  ## switch versions 100 times under load, and measure it
	CONVSERVE_SWITCHES=100 CONVSERVE_RELIABILITY=full $(BIN)/python -m pytest -s \
		tests/serving/test_reload_under_load.py -k 'row_18'

reliability: $(VENV)/.installed-test  ## the table of docs/reliability.md in full, with its figures
	CONVSERVE_RELIABILITY=full $(BIN)/python -m pytest -s tests/serving -k 'row_ and not row_20'

SOAK = $(BIN)/python -m pytest -s tests/serving/test_soak.py
soak: $(VENV)/.installed-test  ## 30 minutes of a mixed load on one server: nothing wrong, flat memory
	CONVSERVE_SOAK_SECONDS=1800 $(SOAK)

soak-long: $(VENV)/.installed-test  ## the same for seven hours
	CONVSERVE_SOAK_SECONDS=25000 $(SOAK)

# atheris, the fuzzer, stays out of the environment of the tests.
FUZZ := build/fuzz
FUZZ_TARGETS ?= requests model-files configs images
fuzz: $(FUZZ)/.installed  ## mutate what is parsed for SECONDS each; a finding is left in build/fuzz
	@set -e; for target in $(FUZZ_TARGETS); do \
		echo "fuzz $$target"; mkdir -p $(FUZZ)/$$target; \
		(cd tests && PYTHONPATH=$(abspath $(FUZZ))/lib $(abspath $(BIN))/python -m fuzz.run \
			$$target $(SECONDS) $(abspath $(FUZZ))/$$target 2> $(abspath $(FUZZ))/$$target/log) \
			|| { tail -n 40 $(FUZZ)/$$target/log; exit 1; }; \
		grep '^stat::' $(FUZZ)/$$target/log; \
	done

$(FUZZ)/.installed: $(VENV)/.installed-test
	$(PIP) install --quiet --upgrade --target $(FUZZ)/lib atheris
	touch $@

demo: $(VENV)/.installed  ## train, serve, classify, draw: the whole job in a minute
	$(BIN)/convserve demo --dir demo

lint: $(VENV)/.installed-dev  ## format check, linters, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint kernels
	@# mypy finds packages by folder, not by package_dir: lay them out that way
	@mkdir -p build/typing/convserve
	@ln -sfn $(CURDIR)/convserve/* $(CURDIR)/kernels build/typing/convserve
	cd build/typing && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml

check-deploy: $(VENV)/.installed-deploy $(VENV)/.installed-test  ## linters over Dockerfile, unit, manifests, alerts, dashboard
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/kubernetes-validate --strict deploy/kubernetes/[!k]*.yaml
	@# without it the tests of the queries would be skipped
	$(BIN)/python -c 'import promql_parser'
	$(BIN)/python -m pytest tests/deploy
	@# it checks the rest of the unit although the program is not there
	! systemd-analyze verify deploy/convserve.service 2>&1 | grep -v 'is not executable'

check-native: $(BIN)/python  ## the C kernels, the executor and a training step, without Python
	$(MAKE) -C tests/native OUT=$(abspath build/native)

# Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
AARCH64_CC ?= aarch64-linux-gnu-gcc
QEMU_AARCH64 ?= qemu-aarch64-static

check-aarch64:  ## the same cross-compiled for NEON, run under an emulator
	@if ! command -v $(AARCH64_CC) > /dev/null; then echo 'skipped: no $(AARCH64_CC)'; else \
		command -v $(QEMU_AARCH64) > /dev/null || echo 'not run: no $(QEMU_AARCH64)'; \
		$(MAKE) -C tests/native OUT=$(abspath build/native-aarch64) CC=$(AARCH64_CC) \
			FLAGS='-static -fno-predictive-commoning' \
			RUN="$$(command -v $(QEMU_AARCH64) || echo :)"; fi

# A checked build of its own beside this one: bounds, asserts, AddressSanitizer and
# UndefinedBehaviorSanitizer under the tests of the kernels, the plan, the engine and the compiled
# training; then the C checks, which own what they allocate, so that leaks show too; then
# ThreadSanitizer under the executor and the training step. Python keeps memory until it ends.
SANITIZED := build/sanitize
SANITIZED_TRAINING := $(addprefix tests/training/test_, compiled_step.py optimiser_kernels.py augment.py)
ADDRESSES := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: $(VENV)/.installed-test  ## the compiled code under sanitizers
	@mkdir -p $(SANITIZED)/source
	git ls-files -z setup.py pyproject.toml README.md LICENSE convserve kernels \
		| xargs -0 cp -pu --parents -t $(SANITIZED)/source
	cd $(SANITIZED)/source && CONVSERVE_SANITIZE=1 $(abspath $(BIN))/python setup.py --quiet \
		build --build-lib ../lib
	PYTHONPATH=$(abspath $(SANITIZED)/lib) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(BIN)/pytest -p no:cacheprovider tests/kernels tests/plan tests/engine \
		$(SANITIZED_TRAINING) -k 'not placed_quickly' $(PYTEST_ARGS)
	$(MAKE) -C tests/native OUT=$(abspath build/native-addresses) FLAGS='$(ADDRESSES)'
	$(MAKE) -C tests/native OUT=$(abspath build/native-threads) ISAS=base \
		FLAGS='-O1 -fsanitize=thread' ROUNDS='100 no-fork' check-executor check-training

SECONDS ?= 60
soak-engine: $(VENV)/.installed-test  ## eight Python threads predicting for SECONDS: same bits, flat memory
	CONVSERVE_SOAK_SECONDS=$(SECONDS) $(BIN)/python -m pytest -s tests/engine/test_concurrency.py

# From the source distributions, so that these are known to build.
wheel: $(VENV)/.installed-wheel  ## build wheels that need no compiler into dist, and try them
	rm -rf build/wheel dist
	$(BIN)/python -m build --sdist --no-isolation --outdir dist clients/python > build/sdist.log
	$(BIN)/python -m build --sdist --no-isolation --outdir dist . >> build/sdist.log
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel dist/*.tar.gz
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --strip --wheel-dir dist build/wheel/convserve-*.whl
	cp build/wheel/convserve_client-*.whl dist
	$(BIN)/python scripts/try_wheel.py dist

# What we are compared with stays in an environment of its own.
bench: $(VENV)/.installed-onnx $(BENCH_VENV)/.installed  ## beside five other engines, into docs/benchmarks.md
	$(BENCH_VENV)/bin/python -m benchmarks.run --convserve $(BIN)/python \
		--docs docs/benchmarks.md $(BENCH_ARGS)

bench-quick: $(VENV)/.installed-onnx $(BENCH_VENV)/.installed  ## a few minutes of it, on the terminal
	$(BENCH_VENV)/bin/python -m benchmarks.run --convserve $(BIN)/python --quick \
		--results runs/bench-quick/results.jsonl $(BENCH_ARGS)

bench-serving: $(VENV)/.installed  ## the server beside a bare gRPC echo, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.serving --docs docs/benchmarks.md $(BENCH_ARGS)

bench-training: $(VENV)/.installed $(BENCH_VENV)/.installed  ## training beside PyTorch, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.training --torch $(BENCH_VENV)/bin/python \
		--docs docs/benchmarks.md $(BENCH_ARGS)

bench-layers: $(VENV)/.installed  ## GFLOP/s of convolution layers, beside the measured peak
	$(BIN)/convserve bench --layers

clean:  ## remove what was built or drawn; the environment stays
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f kernels/*.c kernels/*.html kernels/*.so $(VENV)/.installed $(VENV)/.installed-*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV) $(BENCH_VENV) *.egg-info clients/python/src/*.egg-info

# The checks turn three puzzling failures, minutes later, into one line now.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'Python 3.10 or newer is needed; choose one with make PYTHON=…'; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s, sys; \
		sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' \
		|| { echo 'Python.h is missing: install the headers (python3-dev, python3-devel)'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo 'The venv module is missing: install python3-venv'; exit 1; }
	@{ command -v cc || command -v gcc || command -v clang; } > /dev/null \
		|| { echo 'A C compiler is needed: install gcc or clang'; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-tools: $(BIN)/python
	$(PIP) install --quiet $(BUILD_TOOLS)
	touch $@

$(VENV)/.installed: $(VENV)/.build-tools $(PACKAGING) $(KERNELS)
	$(if $(filter-out kernels/%,$?), \
		$(PIP) install --quiet --no-build-isolation -e clients/python -e ., \
		$(BIN)/python setup.py --quiet build_ext --inplace)
	touch $@

# Already installed, so that pip adds no more than the extra's requirements.
$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) install --quiet 'convserve[$*]'
	touch $@

$(BENCH_VENV)/.installed: benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	touch $@
