PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUTPUT ?= demo_output
MODEL ?= $(OUTPUT)/model
STUDY_OUTPUT ?= study_output
# Test files at a time.
JOBS ?= 2

.PHONY: demo app study test slow-test lint clean

# One environment for everything, at the versions tested (about 6 GB with torch).
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# Makes motion clips, trains a tiny model on them and classifies held-out clips at three token budgets. Offline.
demo: $(VENV)/installed
	$(BIN)/python -m training.study.demo --output_dir $(OUTPUT)

# A page to try the demo's model on, at http://127.0.0.1:7860 (or the next free port); Ctrl-C stops it.
#   make app MODEL=FOLDER_OR_HUB_ID
app: $(VENV)/app-installed
	@test "$(MODEL)" != "$(OUTPUT)/model" || test -f "$(MODEL)/config.json" || \
	    { echo "no model in $(OUTPUT): run \`make demo\` first, or give MODEL="; exit 1; }
	$(BIN)/python -m flux_hf.app --model $(MODEL)

$(VENV)/app-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,test]'
	touch $@

# The experiment; hours. It goes on where it was stopped, and takes no run again whose result is kept.
#   make study REAL_DATA="FOLDER FOLDER" STUDY_FLAGS="--seeds 0 --methods fixed multi"
study: $(VENV)/installed
	$(BIN)/python -m training.study --output_dir $(STUDY_OUTPUT) --results_dir training/study/results \
	    --real_data $(REAL_DATA) $(STUDY_FLAGS)

test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadfile

slow-test: $(VENV)/browser-installed
	$(BIN)/python -m pytest -m slow

# What opens the page in a test: the system's Chromium where there is one, else Playwright's (a download).
$(VENV)/browser-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	    $(BIN)/python -m playwright install chromium
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build demo_output *.egg-info
