PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUTPUT ?= demo_output
# Test files at a time.
JOBS ?= 2

.PHONY: demo test slow-test lint clean

# One environment for everything, at the versions tested (about 6 GB with torch).
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# Makes motion clips, trains a tiny model on them and classifies held-out clips at three token budgets. Offline.
demo: $(VENV)/installed
	$(BIN)/python -m training.study.demo --output_dir $(OUTPUT)

test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadfile

slow-test: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build demo_output *.egg-info
