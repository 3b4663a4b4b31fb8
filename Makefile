# Set-up from a bare clone on Debian or Ubuntu with python3, git and make:
#   make demo    create .venv, install pyhv, boot the built-in guests
#   make test    create .venv, install pyhv and the test tools, run the tests
# Nothing is installed outside .venv, except Debian's python3-venv where python3 lacks it (you are told).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# As pip does for what it copies: where PYTHONDONTWRITEBYTECODE is set, every start would compile all anew.
COMPILE := $(BIN)/python -m compileall -q pyhv

# make fuzz FUZZ_TIME=3600 FUZZ_TARGETS="hypercalls emulator": seconds for each, one after the other, FUZZ_JOBS
# processes at a time; inputs that reach something new are kept in FUZZ_CORPUS; FUZZ_SEED=1 tries the same again
# and again, 0 something else each time. `model` is no fuzzer but the deep run of tests/property/test_mmu_model.py.
FUZZ_TIME ?= 600
FUZZ_JOBS ?= 1
FUZZ_SEED ?= 0
FUZZ_CORPUS ?= .fuzz-corpus
FUZZ_TARGETS ?= hypercalls hypercalls32 emulator emulator32 rings frames images smc snapshots recordings qcow2 model

.PHONY: demo test test-plain test-installation native wheel debian programs lint docs bench bench-quick flame mutants fuzz fuzz-tools clean

demo: $(VENV)/installed
	$(BIN)/pyhv boot

test: $(VENV)/installed-dev
	@$(BIN)/python -m native --optional
	$(BIN)/pytest -m "not debian and not installation" -n 2

# What differs in the plain lane, once more there (docs/native.md): not the host's files and sockets.
test-plain: $(VENV)/installed-dev
	PYHV_LANE=plain $(BIN)/pytest tests/unit tests/guests -n 2 \
	  --ignore-glob '*/test_storage_*' --ignore-glob '*/test_volumes_*' --ignore-glob '*/test_net_*' --ignore-glob '*/test_images_*'

# A Python of another version with pyhv's dependencies, for tests/cli/test_determinism.py: the newest that is found.
OTHER_PYTHON ?= $(firstword $(foreach v,3.14 3.13 3.12,$(wildcard $(HOME)/.pyenv/versions/$(v)*/bin/python) $(shell command -v python$(v))))
.venv-other/installed:
	@test -n "$(OTHER_PYTHON)" || { echo "no Python newer than 3.11 is found: install one, or name it as OTHER_PYTHON="; exit 1; }
	$(OTHER_PYTHON) -m venv .venv-other
	PYHV_NATIVE=off .venv-other/bin/pip install --quiet . && .venv-other/bin/pip uninstall --quiet --yes pyhv
	touch $@

test-installation: $(VENV)/installed-dev
	$(BIN)/pytest -m installation -n 2

# Each check that hostile guests must miss when it is taken out, in both lanes: `make test` compiles only some of them.
mutants: $(VENV)/installed-dev
	@$(BIN)/python -m native
	PYHV_DEEP=1 $(BIN)/pytest tests/guests/test_hostile_mutants.py -n 2
	PYHV_LANE=plain $(BIN)/pytest tests/guests/test_hostile_mutants.py -n 2

# The native lane, after its sources were edited; CHECKED=1: the checked lane, for fuzzers (docs/native.md).
native: $(VENV)/installed-dev
	$(BIN)/python -m native $(if $(CHECKED),--lane checked)

# One wheel for this architecture and every Python from 3.11 on, in dist/. Fails without a C compiler.
wheel: $(VENV)/installed-dev
	PYHV_NATIVE=abi3 $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

debian: $(VENV)/installed-dev
	$(BIN)/pytest -m "debian and not programs" -n 2 --dist loadfile

# C programs and Linux' own tests in Debian's guest: needs gcc and gcc-multilib. Each guest belongs to one process.
programs: $(VENV)/installed-dev
	$(BIN)/pytest -m programs -n 2 --dist loadgroup

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python -m docgen.hypercalls > docs/hypercalls.md
	$(BIN)/python -m docgen.numbers > pyhv/guests/hypercalls.inc
	$(BIN)/python -m docgen.cpu > docs/cpu.md
	$(BIN)/python -m docgen.hostile > docs/hostile.md
	$(BIN)/python -m docgen.promises > docs/promises.md
	$(BIN)/python -m bench.selftests docs/compatibility.md

bench: $(VENV)/installed-dev
	$(BIN)/python -m bench peer

# Has something got slower? Ratios to plain Python, in half a minute for each lane; a report, and no test.
bench-quick: $(VENV)/installed-dev
	PYHV_LANE=native $(BIN)/python -m bench quick
	PYHV_LANE=plain $(BIN)/python -m bench quick

# Where the time goes: flame graphs for docs/performance.md. On an idle host; the user must be allowed to trace.
flame: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --editable '.[dev,profile]'
	$(BIN)/python -m bench flame boot --write docs/flame/boot.svg
	$(BIN)/python -m bench flame fork --write docs/flame/fork.svg

fuzz: $(VENV)/installed-fuzz
	@failed=0; for target in $(FUZZ_TARGETS); do \
	  if [ $$target = model ]; then PYHV_DEEP=1 $(BIN)/pytest tests/property/test_mmu_model.py || failed=1; \
	  else $(BIN)/python -m fuzz $$target --time $(FUZZ_TIME) --jobs $(FUZZ_JOBS) --seed $(FUZZ_SEED) \
	    --corpus $(FUZZ_CORPUS)/$$target || failed=1; fi; \
	done; exit $$failed

fuzz-tools: $(VENV)/installed-fuzz

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pyhv needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python's venv module is missing; try: sudo apt install python3-venv"; exit 1; }

$(VENV)/installed: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@$(COMPILE)
	@$(BIN)/python -c 'from pyhv import lane; print("pyhv is installed:", lane.describe())'
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	@$(COMPILE)
	@$(BIN)/python -c 'from pyhv import lane; print("pyhv is installed:", lane.describe())'
	@touch $@ $(VENV)/installed

$(VENV)/installed-fuzz: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --editable '.[dev,fuzz]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-other build dist pyhv/native-lane pyhv/checked-lane *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
