# One set of commands for people and CI. Each installs what it needs, once, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the tests run in as many processes as there are cores; and on networks as
# small as the demo's, two threads gain little and wait for each other when the machine is busy.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORK ?= demo

.PHONY: demo test check bench docs clean

# The whole loop on handwritten digits; WORK=folder puts it elsewhere.
demo: $(VENV)/.demo
	$(ONE_THREAD) $(BIN)/prunella run digits --budget.macs 0.5 --finetune.max_drop 0.01 \
		--run.folder $(WORK)

test: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest -n logical --maxprocesses 8

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(ONE_THREAD) $(BIN)/python -m benchmarks.zoo torchvision-cnn

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras, redone when pyproject.toml changes. `check` takes the tests' set too:
# mypy reads the installed packages.
$(VENV)/.demo: EXTRAS := demo
$(VENV)/.test: EXTRAS := test
$(VENV)/.check: EXTRAS := check,test
$(VENV)/.bench: EXTRAS := bench
$(VENV)/.docs: EXTRAS := docs
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@
