# The same commands for a new user, for CI and for us.
#   make serve   install, fetch the default model, serve on 127.0.0.1:8000
#   make test    install, lint, run the tests
# TORCH=2.13.0 (or TORCH='torch>=2.9,<3') pins torch; TORCH_INDEX=URL takes torch from another wheel index; PYTHON=python3.12 names an interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# A torch that satisfies the requirement is kept as it is: a CPU-only machine never has to download CUDA.
TORCH_REQUIREMENT := $(if $(TORCH),$(if $(filter torch%,$(TORCH)),$(TORCH),torch==$(TORCH)),torch>=2.9)

.PHONY: install serve test test-avx2 test-ecosystem mutants sanitize lint format bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py clients/python/pyproject.toml Makefile $(wildcard engine/kernels/cpu/src/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH_REQUIREMENT)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e clients/python -e '.[test]'
	touch $@

serve: install
	$(BIN)/draftline serve $(ARGS)

# A process for each core, four at most; the tests of a file stay together, for they share what is slow to start.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

test: install lint
	$(BIN)/pytest $(PARALLEL) $(ARGS)

# As on a processor without AVX-512: hidden from torch, from oneDNN and from the CPU kernels.
test-avx2: install
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 DRAFTLINE_MAX_CPU_ISA=avx2 $(BIN)/pytest $(PARALLEL) $(ARGS)

# Third-party clients against a real server, from an environment of their own: some minutes to install. TORCH as above.
ECOSYSTEM := .venv-ecosystem
test-ecosystem: install
	test -x $(ECOSYSTEM)/bin/python || $(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/pip install --quiet --disable-pip-version-check "$(TORCH_REQUIREMENT)" -r tests/ecosystem/requirements.txt
	-command -v npm >/dev/null && cd tests/ecosystem && npm install --silent
	DRAFTLINE=$(abspath $(BIN))/draftline $(ECOSYSTEM)/bin/pytest -c /dev/null --noconftest -p no:cacheprovider tests/ecosystem/clients_check.py $(ARGS)

# Single faults planted in the code, and the share that the tests notice: some ten minutes.
mutants: install
	$(BIN)/python -m tools.mutants $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernels under AddressSanitizer and UBSan: a few minutes.
sanitize: install
	$(BIN)/pytest -m sanitizer

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m loadtest.offline $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
