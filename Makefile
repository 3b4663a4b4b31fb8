# Set-up from a bare clone on Debian or Ubuntu with python3, git and make:
#   make demo    create .venv, install pyhv, boot the built-in guests
#   make test    create .venv, install pyhv and the test tools, run the tests
# Nothing is installed outside .venv, except Debian's python3-venv where python3 lacks it (you are told).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test debian lint docs bench clean

demo: $(VENV)/installed
	$(BIN)/pyhv boot

test: $(VENV)/installed-dev
	$(BIN)/pytest -m "not debian" -n 2

debian: $(VENV)/installed-dev
	$(BIN)/pytest -m debian

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python -m pyhv.hypercalls.document > docs/hypercalls.md

bench: $(VENV)/installed-dev
	$(BIN)/python -m bench peer

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pyhv needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python's venv module is missing; try: sudo apt install python3-venv"; exit 1; }

$(VENV)/installed: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
