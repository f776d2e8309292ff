# make demo   sets up and runs the main job: no server, no network
# make test   sets up and runs every check and test, against real servers
# make accuracy  scores the shipped topologies on public benchmarks (with ../shared beside the project)
# make torture  kills workers 500 times and audits them: some minutes; go on with make torture ARGS=--resume
.PHONY: demo install dev servers check kernels test torture bench accuracy lock clean
.DEFAULT_GOAL := demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
APT := DEBIAN_FRONTEND=noninteractive $(AS_ROOT) apt-get

demo: install
	$(BIN)/mmlw demo

install: $(VENV)/.installed

dev: $(VENV)/.dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"mmlw needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; say make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "installing python3-venv (Debian ships it apart)"; $(APT) update -qq && $(APT) install -y -qq python3-venv; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing mmlw into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing mmlw and its test tools into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

servers:
	@missing=; command -v promtool >/dev/null && command -v prometheus >/dev/null || missing="$$missing prometheus"; \
	[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$$missing rabbitmq-server"; \
	[ -z "$$missing" ] || { echo "installing$$missing from Debian's packages"; \
		$(APT) update -qq && $(APT) install -y -qq --no-install-recommends $$missing >/dev/null; }

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layers.py

kernels: dev  # once, for all the processes of the tests: each would compile them for itself
	$(BIN)/python -c 'from detectors import kernels; kernels.ready()'

test: dev servers
	$(MAKE) --no-print-directory --jobs 2 check kernels
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

torture: dev servers
	$(BIN)/python -m tests.torture --kills 500 --mode both $(ARGS)

accuracy: dev
	$(BIN)/python -m benchmarks.accuracy

bench: dev servers
	$(BIN)/python -m benchmarks.end_to_end

lock:
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-emit-index-url --no-annotate --upgrade --quiet -o constraints.txt

clean:
	rm -rf $(VENV) mmlw-data mmlw-report.html .mypy_cache .ruff_cache .pytest_cache .hypothesis
