# Every target sets up what it needs; a second run only does what changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench docs clean

# -- environments: one stamp per set of extras, renewed when the project's metadata changes -------------------
$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[build]"
	touch $@

# this version's wheel for processors is small; the plain name would bring gigabytes of CUDA on some indexes
TORCH ?= torch==2.13.0

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,rtx]" \
	|| { echo "TensorRT for RTX cannot be installed here: the tests that build plans are skipped"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"; }
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@

setup: $(VENV)/.dev

# -- what the README shows ------------------------------------------------------------------------------------
demo: $(VENV)/.base
	$(BIN)/facesdk models pull annotation
	$(BIN)/facesdk annotate tests/data/astronaut.png -o demo
	@echo "look at demo/astronaut.overlay.png"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p facesdk

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/annotate.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site demo
