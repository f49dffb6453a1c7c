# Every command makes $(VENV) and installs what it needs if that is not there; README.md has the plain pip lines.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifneq ($(words $(VENV)),1)
$(error VENV must be one path without spaces, got '$(VENV)')
endif

.PHONY: quickstart test test-slow test-gpu format lint type clean

quickstart: $(VENV)/.train  ## train on scikit-learn's digits, save the model, predict with it
	$(BIN)/accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml

test: $(VENV)/.dev  ## the test suite, on the CPU, by up to four processes of 4 GB
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.dev  ## what takes minutes: timm's own tests on the big models
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .cache output *.egg-info

# Stamps: one per set of extras, renewed when the dependencies may have changed.
$(VENV)/.train $(VENV)/.dev: pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q -e '.[$(patsubst .%,%,$(notdir $@))]'
	touch $@
