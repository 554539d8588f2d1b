# make run    see it work on real lines (the first run trains a model and remembers it)
# make quick  the fast tests: no process, no training of a transformer
# make test   everything that CI checks, but the system test and the soak
# make system-test  the service as a user gets it: a Debian 12 in a container, from installing to removing (as root)
# make soak   everything at once for an hour, or VIGILD_SOAK_SECONDS: load, kills, hostile clients, rotation, retraining
# make fuzz   ten minutes, or VIGILD_FUZZ_SECONDS, of hostile inputs for each format that is read from outside
# make faults the long proofs, in parts of at most an hour: those that did not pass with this code yet, or PART=name (as
#             root, for the power cuts); interrupt it at any time
# make faults-report  write into docs/guarantees.md what each part came to
# make test-interpreters  on every Python of this machine, all tests that need no torch
# make bench  print the benchmarks' tables
# make quality measure the verdicts on every labelled set (an hour or two) and rewrite the table in docs/detection.md
# make lint   only the checks of format, style, types and cancellation
# make setup  only prepare .venv
# sudo make install, sudo make uninstall   the service, by install.sh; PREFIX and DESTDIR as it has them

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

# Rules that flake8 leaves off by default: a checkpoint on every path, every startable function listed, no async
# function without await (the web framework asks for them), httpx's name.
OPTIONAL := ASYNC9,ASYNC114,ASYNC124,ASYNC127

.PHONY: run quick test system-test soak fuzz test-interpreters faults faults-report lint bench quality setup clean install uninstall

run: $(VENV)/.installed
	@$(BIN)/python -m daemon.demo

# On both cores. A trainer of a daemon under test runs at the lowest priority: were the tests not of that, too, it would
# hardly ever get its turn beside two of them.
# The order of files is that of tests/conftest.py, the longest first.
PYTEST := nice -n 19 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: setup
	$(PYTEST) -q -m 'not slow' tests/actors tests/daemon tests/detection tests/persistence tests/test_*.py

test: lint
	$(PYTEST)

test-interpreters: export VIGILD_INTERPRETERS := all
test-interpreters: setup
	$(BIN)/python -m pytest tests/interpreters -rs -s

# One story, so what follows a failure would only fail of it. Minutes; the tree and packages are kept for the next time.
system-test: setup
	$(BIN)/python -m pytest tests/system --exitfirst --durations 0 --durations-min 1 -ra

soak: export VIGILD_SOAK_SECONDS ?= 3600
soak: setup
	$(BIN)/python -m pytest tests/soak -s

fuzz: export VIGILD_FUZZ_SECONDS ?= 600
fuzz: setup
	$(BIN)/python -m pytest tests/fuzz -v

# A short form of each fault runs with the other tests; how often each is caused here is in tests/faults/parts.py.
faults: setup
	$(BIN)/python -m tests.faults.parts $(PART)

faults-report: setup
	$(BIN)/python -m tests.faults.parts --write docs/guarantees.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/flake8-async --disable $(OPTIONAL) $$(find daemon actors -name '*.py')

bench: $(VENV)/.installed
	@for each in $$(ls benchmarks/*.py | grep -v running); do \
	  name=$$(basename $$each .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; \
	done

quality: $(VENV)/.installed
	$(BIN)/python -m benchmarks.quality --write docs/detection.md

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what vigild needs into $(VENV) (once; torch is large, it takes a while)"
	@sh install/cpu_torch.sh $(BIN)/python
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what vigild and its tests need into $(VENV) (once; torch is large, it takes a while)"
	@sh install/cpu_torch.sh $(BIN)/python
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null \
	  || { echo "there is no $(PYTHON): install Python 3.11 or newer, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$$($(PYTHON) --version) is too old: vigild needs 3.11 or newer; name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make environments: install its venv package (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# Its own interpreter unless one is named: the one on PATH may be out of the service's sight.
install:
	@./install.sh $(if $(filter command% environment%,$(origin PYTHON)),--python "$$(command -v $(PYTHON))")

uninstall:
	@./install.sh --uninstall

install uninstall: export PREFIX := $(PREFIX)
install uninstall: export DESTDIR := $(DESTDIR)

clean:
	rm -rf $(VENV) .run
