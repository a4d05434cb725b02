# Two commands do everything on a machine with Python >= 3.11, git and make:
#   make demo   install into .venv, embed and search the text in examples/
#   make test   install with the test extra; lint, types, tests
# Both install in editable form, once: after an edit nothing is installed anew until pyproject.toml or
# constraints.txt change. The wheel has its own test, tests/test_install.py.
# `make prove-kernels` runs the Triton kernels without a GPU, and checks their accesses to memory.
# `make tritons` tests the kernels under each release of Triton that lastword admits.
# `make soak` does that too, and runs larger counts, 20,000 mutated inputs (tests/fuzz), and repeats the tests under new
# random seeds, with twenty times as many random cases; `make clean` removes what these made.

PYTHON ?= python3
SOAK_ROUNDS ?= 3
WORKERS ?= 2
FUZZ_CASES ?= 20000
FUZZ_SEED ?=

# The installed release is tested by `make test`.
TRITONS := 3.6.0 3.8.0 3.9.0

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CHECKED := engine kernels weights bench examples tests
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest
# One thread for each worker; a file's tests stay together, since they share what is slow to make.
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder

NOTES := examples/notes.txt

.PHONY: demo test browser lint types prove-kernels prove-pipelined tritons soak clean

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

# What depends on clocks or on memory comes after the rest, alone.
test: lint types browser
	$(PARALLEL) -m "not timing and not soak"
	$(PYTEST) -m "timing and not soak"
	TRITON_INTERPRET=1 $(PARALLEL) tests/interpreter
	$(MAKE) prove-kernels

# The page of `lastword serve` is tested in Chromium. Where it is missing, Debian's is installed if that is possible;
# if not, those tests are skipped.
browser:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v chromedriver > /dev/null; then \
	    echo "installing chromium for the tests"; \
	    apt="apt-get -o Acquire::Retries=0 -o Acquire::http::Timeout=20"; \
	    packages="install --yes --no-install-recommends chromium chromium-driver"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    { timeout 300 $$apt $$packages || { timeout 60 $$apt update && timeout 300 $$apt $$packages; }; } \
	        > /dev/null 2>&1 || echo "chromium cannot be installed: its tests are skipped"; \
	fi

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

# mypy cannot follow the folder-to-package mapping of the checkout, so it reads a tree of links that
# looks like the installed package.
types: $(VENV)/.installed-test
	rm -rf $(VENV)/types
	mkdir -p $(VENV)/types/lastword
	ln -s $(CURDIR)/engine/* $(CURDIR)/kernels $(CURDIR)/weights $(CURDIR)/bench $(VENV)/types/lastword
	cd $(VENV)/types && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache --package lastword

# ttsem executes the IR that Triton compiles for a GPU, and checks every access: `prove-kernels` the IR before any
# optimisation, `prove-pipelined` the last one, of attention only. Its metadata asks for Python 3.12, but it works with
# 3.11 too. Where it cannot be installed, the kernels run in Triton's interpreter only.
prove-kernels: PROVED := 1
prove-pipelined: PROVED := pipelined
prove-kernels prove-pipelined: $(VENV)/.installed-test
	@$(INSTALL) --no-deps --ignore-requires-python --upgrade --target $(CURDIR)/$(VENV)/ttsem ttsem==0.1.0 \
	    || { echo "ttsem cannot be installed: the kernels are not proved"; exit 0; }; \
	export PYTHONPATH=$(CURDIR)/$(VENV)/ttsem$${PYTHONPATH:+:$$PYTHONPATH}; \
	PROVE_KERNELS=$(PROVED) $(PARALLEL) tests/interpreter

# The kernels compiled, interpreted and proved under the other releases of Triton that pyproject.toml admits. The
# interpreter of 3.6 converts arrays of one element to numbers, which NumPy deprecates and, from 2.4 on, refuses.
tritons: $(VENV)/.installed-test
	for release in $(TRITONS); do \
	    folder=$(CURDIR)/$(VENV)/triton-$$release; \
	    case $$release in 3.6.*) older=numpy==2.3.5;; *) older=;; esac; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $$folder \
	        triton==$$release $$older || exit 1; \
	    PYTHONPATH=$$folder $(PARALLEL) tests/kernels tests/bench/kernels || exit 1; \
	    TRITON_INTERPRET=1 PYTHONPATH=$$folder $(PARALLEL) tests/interpreter \
	        -W "ignore:Conversion of an array:DeprecationWarning" || exit 1; \
	done
	PYTHONPATH=$(CURDIR)/$(VENV)/triton-3.8.0 $(MAKE) prove-kernels prove-pipelined

soak: $(VENV)/.installed-test prove-pipelined tritons
	$(BIN)/python tests/fuzz/campaign.py --oracle --cases $(FUZZ_CASES) $(FUZZ_SEED:%=--seed %)
	$(PYTEST) -q -m soak
	for seed in $$(seq $(SOAK_ROUNDS)); do \
	    LASTWORD_SOAK=1 $(PYTEST) -x -q --hypothesis-seed=$$(date +%s)$$seed || exit 1; \
	done

clean:
	rm -rf $(VENV) .clients .demo fuzz-findings build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lastword needs Python >= 3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed $@
