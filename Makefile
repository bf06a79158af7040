# Every target works from a clean clone: it makes .venv and installs into it first, where that has not been done.
# The only needs are make and Python >= 3.11, and a package index the first time.

# The Python that .venv is made with: python3.11 if it runs, else python3.
PYTHON ?= $(shell for p in python3.11 python3; do "$$p" -c "" >/dev/null 2>&1 && echo "$$p" && break; done)
# Extra arguments for demo, test and bench, e.g.: make test ARGS="-k prompts"
ARGS ?=
# Processes that the tests are spread over.
TEST_WORKERS ?= 2
# Of the benchmarks: a folder or GGUF file in the place of the stand-in. Of the demo: "tiny" takes models that are built in the run, without downloads, in three minutes.
STUDENT ?=
# Threads of the demo: accelerate would give its process one.
THREADS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
DEMO_OUTPUT := outputs/demo$(if $(filter tiny,$(STUDENT)),_tiny)
DEMO_TIME := $(if $(filter tiny,$(STUDENT)),three minutes,some ten minutes (twenty without bfloat16 units))
DEMO_MODELS := $(if $(filter tiny,$(STUDENT)),--student mini --teacher mini --max_train_pairs 800 --max_test_pairs 400)
ifneq ($(and $(filter demo,$(MAKECMDGOALS)),$(filter-out tiny,$(STUDENT))),)
$(error make demo takes no STUDENT but tiny, not $(STUDENT). Leave it out, or name both models: make demo ARGS="--student FILE --teacher FOLDER")
endif
# What `make bench` runs.
BENCH ?= -m benchmarks

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
# Newer than the files it depends on if .venv holds what they ask for.
STAMP := $(VENV)/.installed
# The same for what builds the documentation, which only `make docs` needs.
DOCS_STAMP := $(VENV)/.docs-installed
# There while an installation runs; left over, it says that one was interrupted. Outside .venv, which may be cleared.
UNFINISHED := .venv.unfinished
# What the site holds, laid out in build/pages as here, so that links are the same in the site and here.
PAGES := README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md LICENSE CITATION.cff benchmarks/NOTES.md \
	$(wildcard $(foreach kind,md css svg ipynb,docs/*.$(kind)) docs/api/*.md $(foreach kind,md png,model_cards/*.$(kind) model_cards/*/*.$(kind) model_cards/*/*/*.$(kind)))
# The folders that mypy checks: it refuses one without Python files.
TYPED := $(sort $(dir $(wildcard flipped_kd/*.py recipes/*.py benchmarks/*.py docs/*.py)))

# Nothing here needs the Hub: a look-up by mistake fails at once instead of hanging.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("flipped_kd needs Python 3.11 or newer, but %s is Python %s. Name another one: make PYTHON=/path/to/python3.11"
             % (sys.executable, sys.version.split()[0]))
endef
export CHECK_PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format docs bench release clean distclean same-python

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make .venv and install into it (the other targets do so too)

demo: $(STAMP)  ## train SmolLM2 on the embedded finance pairs, report in outputs/demo (tiny: outputs/demo_tiny)
	@echo "The demo takes $(DEMO_TIME) on two CPU cores. A table comes at the end; the page is $(DEMO_OUTPUT)/report.html."
	$(if $(DEMO_MODELS),$(OFFLINE)) $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no --num_cpu_threads_per_process $(THREADS) recipes/train_fin.py --output_dir $(DEMO_OUTPUT) $(DEMO_MODELS) $(ARGS)

test: $(STAMP)  ## run the tests
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 $(ARGS)

lint: $(STAMP)  ## check style, formatting and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy $(TYPED)

format: $(STAMP)  ## rewrite the code in the project's format
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

docs: $(DOCS_STAMP)  ## build the documentation with the API pages, in build/site
	rm -rf build/pages build/site
	@for page in $(PAGES); do mkdir -p build/pages/$$(dirname $$page) && ln -s "$(CURDIR)/$$page" build/pages/$$page || exit 1; done
	$(VENV)/bin/zensical build --clean --strict
	$(VENV_PYTHON) docs/check_site.py build/site

bench: $(STAMP)  ## run the benchmarks
	$(OFFLINE) FLIPPED_KD_STUDENT="$(STUDENT)" $(VENV_PYTHON) $(BENCH) $(ARGS)

release: $(STAMP)  ## build source archive and wheel in dist, and check them; uploads nothing
	VENV_PYTHON="$(CURDIR)/$(VENV_PYTHON)" .ci/release

clean:  ## remove caches and build leftovers; keep .venv and outputs
	rm -rf build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV) $(UNFINISHED)

# A PYTHON that was asked for must not be passed over in silence because .venv is there already.
same-python:
ifeq ($(origin PYTHON),command line)
	@[ ! -e $(UNFINISHED) ] || exit 0; \
	version() { "$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }; \
	there=$$(version $(VENV_PYTHON) 2>/dev/null) || exit 0; asked=$$(version "$(PYTHON)") || exit 1; \
	[ "$$there" = "$$asked" ] || { echo "$(VENV) is of Python $$there, and PYTHON=$(PYTHON) is $$asked. Remove $(VENV) first: make distclean" >&2; exit 1; }
endif

# An interrupted installation can leave half a package that pip takes for a whole one, so .venv is then made anew.
$(STAMP): setup.cfg pyproject.toml constraints.txt $(wildcard $(UNFINISHED)) | same-python
	@test -n "$(PYTHON)" || { echo "Found neither python3.11 nor python3. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c "$$CHECK_PYTHON"
	@if [ -e $(UNFINISHED) ] || ! $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; then \
		echo "Making $(VENV) with $$("$(PYTHON)" --version)"; \
		touch $(UNFINISHED) && "$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@touch $(UNFINISHED)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	@touch $@ && rm $(UNFINISHED)

$(DOCS_STAMP): $(STAMP)
	@touch $(UNFINISHED)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@ && rm $(UNFINISHED)
