# Two commands do everything on a machine with Python >= 3.11, git and make:
#   make demo   install into .venv, embed and search the text in examples/
#   make test   install with the test extra; lint, types, tests
# `make soak` runs larger counts and repeats the tests under new random seeds, with twenty times as
# many random cases; `make clean` removes what these made.

PYTHON ?= python3
SOAK_ROUNDS ?= 3

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CHECKED := engine kernels weights bench tests
SOURCES := pyproject.toml constraints.txt README.md LICENSE \
    $(shell find engine kernels weights bench -not -name '*.pyc' -not -name __pycache__)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

NOTES := examples/notes.txt

.PHONY: demo test lint types soak clean

demo: $(VENV)/.installed
	@mkdir -p .demo
	@echo
	@echo '$$ lastword embed $(NOTES) -o .demo/notes.safetensors'
	@$(BIN)/lastword embed $(NOTES) -o .demo/notes.safetensors
	@for question in "how do plants make sugar?" "can I take my bike on the train?" \
	    "when is the museum free?"; do \
	    echo; echo "\$$ lastword search \"$$question\" $(NOTES) --top-k 1 --quiet"; \
	    $(BIN)/lastword search "$$question" $(NOTES) --top-k 1 --quiet || exit 1; \
	done

test: lint types
	$(BIN)/python -m pytest
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreter

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

# mypy cannot follow the folder-to-package mapping in the checkout, so it reads what is installed,
# from a folder where no `engine/` can be found by accident.
types: $(VENV)/.installed-test
	cd $(VENV) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache --package lastword

soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m soak
	for seed in $$(seq $(SOAK_ROUNDS)); do \
	    LASTWORD_SOAK=1 $(BIN)/python -m pytest -x -q --hypothesis-seed=$$(date +%s)$$seed || exit 1; \
	done

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lastword needs Python >= 3.11")'
	$(PYTHON) -m venv $(VENV)

# A left-over build/ would put deleted modules into the new wheel.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	rm -rf build
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-test: $(SOURCES) | $(BIN)/python
	rm -rf build
	$(INSTALL) '.[test]'
	@touch $(VENV)/.installed $@
