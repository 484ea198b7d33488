# Everything a person or CI does here. The first `make` of anything installs what is missing.
#
#   make demo    the whole chain on a real model: build, certify, roll out, catch a bad release
#   make test    all tests (real engines, a real broker, a real registry)
#   make check   ruff, format, mypy --strict, import contracts, docs
#   make bench   measure everything and regenerate the documents' tables;  QUICK=1 for a short run
#   make dist    reproducible wheels in dist/
#   make lock    resolve dependencies again and rewrite requirements.lock

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test check bench dist lock install system clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9
# Reproducible archives: nothing in a wheel is younger than this.
export SOURCE_DATE_EPOCH ?= 1767225600
export PATH := $(CURDIR)/$(BIN):$(PATH)

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml agent/pyproject.toml fleet/pyproject.toml
	@echo "installing into $(VENV) (locked by requirements.lock)"
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e . -e agent -e fleet
	@touch $@

system:
	@.ci/system-packages $(SYSTEM)

demo: SYSTEM = mosquitto
demo: system install
	@$(BIN)/python examples/kws/demo.py $(DEMO)

test: SYSTEM = mosquitto skopeo docker-registry qemu-aarch64-static:qemu-user-static mmdebstrap curl h2load:nghttp2-client libb64.so.0d:libb64-0d
test: system install
	@$(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term:skip-covered --cov-report=xml $(TEST)

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/check.py

bench: system install
	@$(BIN)/python benchmarks/build_time.py $(if $(QUICK),--quick)
	@$(BIN)/python benchmarks/agent_latency.py $(if $(QUICK),--quick)
	@$(BIN)/python -m benchmarks.serving $(if $(QUICK),--quick)
	@$(BIN)/python -m benchmarks.swap $(if $(QUICK),--quick)
	@$(BIN)/python -m benchmarks.recovery $(if $(QUICK),--quick)
	@$(BIN)/python -m benchmarks.fuzz $(if $(QUICK),--requests 40000)
	@$(if $(QUICK),,$(BIN)/python -m benchmarks.soak)
	-@$(BIN)/python -m benchmarks.peers $(if $(QUICK),--quick)
	-@$(BIN)/python -m benchmarks.quantization $(if $(QUICK),--quick)
	-@$(BIN)/python -m benchmarks.olive $(if $(QUICK),--rounds 1)
	@$(BIN)/python -m benchmarks.mixed_precision
	@$(if $(QUICK),,$(BIN)/python -m benchmarks.compression)
	@$(BIN)/python docs/check.py --write
bench: SYSTEM = mosquitto h2load:nghttp2-client

dist: install
	@rm -rf dist
	@$(BIN)/uv build --quiet --wheel --all-packages --no-build-isolation --out-dir dist
	@cd dist && sha256sum *.whl

lock: install
	@$(BIN)/uv lock
	@$(BIN)/uv export --quiet --all-packages --all-extras --group dev --no-emit-workspace --no-header --no-annotate --format requirements-txt -o requirements.lock

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* coverage.xml
