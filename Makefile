# Every command makes $(VENV) and installs what it needs if that is not there; README.md has the plain pip lines.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifneq ($(words $(VENV)),1)
$(error VENV must be one path without spaces, got '$(VENV)')
endif

VERSION := $(shell sed -n "s/^__version__ = '\(.*\)'/\1/p" timm_snn/version.py)

.PHONY: quickstart test test-slow test-gpu campaign format lint type docs build test-package release-notes notebooks clean

quickstart: $(VENV)/.train  ## train on scikit-learn's digits, save the model, predict with it
	$(BIN)/accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml

test: $(VENV)/.dev  ## the test suite, on the CPU, by up to four processes of 4 GB
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.dev  ## what takes minutes: timm's own tests on the big models
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

campaign: $(VENV)/.dev  ## damaged files, hostile answers and kills, for MINUTES=6 from a SEED that it prints
	$(BIN)/python -m tests.campaign --minutes $(or $(MINUTES),6) $(if $(SEED),--seed $(SEED))

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the documentation site, in site/; a warning is an error, which --quiet would hide
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(VENV)/.build  ## the wheel and the source distribution, in dist/
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

test-package:  ## both of them, each in an environment that has never seen this folder
	for file in dist/*.whl dist/*.tar.gz; do \
	    $(PYTHON) -m venv --clear $(VENV)-package && \
	    $(VENV)-package/bin/python -m pip install -q $$file && \
	    $(VENV)-package/bin/python -I -c "import timm, timm_snn; print(timm_snn.backend_report()); \
	        timm.create_model('msvit_4_96.fashion_mnist', pretrained=True)" && \
	    $(VENV)-package/bin/timm-snn models --pretrained && \
	    $(VENV)-package/bin/python -m pip install -q "$$file[train]" && \
	    (cd $(VENV)-package && bin/timm-snn report msvit_4_96.digits -n 20) || exit 1; \
	done
	rm -r $(VENV)-package

release-notes:  ## release-notes.md, the section of CHANGELOG.md for TAG=vX.Y.Z
	test '$(TAG)' = 'v$(VERSION)' || { echo "error: version $(VERSION) needs TAG=v$(VERSION), got '$(TAG)'"; exit 1; }
	! grep '^## $(VERSION), not released yet' CHANGELOG.md
	awk '/^## / { section = $$2 } section ~ /^$(VERSION),?$$/' CHANGELOG.md >release-notes.md
	test -s release-notes.md

notebooks: $(VENV)/.dev  ## run those in docs/notebooks/, and store them with what they show
	$(BIN)/python docs/notebooks/execute.py

clean:
	rm -rf $(VENV) $(VENV)-package .cache build dist output site release-notes.md *.egg-info

# Stamps: one per set of extras, renewed when the dependencies may have changed.
make_venv := $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)

$(VENV)/.train $(VENV)/.dev $(VENV)/.docs: pyproject.toml
	$(make_venv)
	$(BIN)/python -m pip install -q -e '.[$(patsubst .%,%,$(notdir $@))]'
	touch $@

$(VENV)/.build:
	$(make_venv)
	$(BIN)/python -m pip install -q build twine
	touch $@
