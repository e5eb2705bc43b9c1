# All targets work from a bare clone: the first one that needs it makes .venv and installs the pinned versions into it.
# make VENV=path ... uses that environment as it is, and installs nothing.

PYTHON ?= python3
ifndef RUN
RUN := outputs/demo_$(shell date +%Y-%m-%d_%H-%M-%S)
endif

ifeq ($(origin VENV),undefined)
VENV := .venv
READY := $(VENV)/.installed
else
READY :=
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))
endif
BIN := $(VENV)/bin

# Idle OpenMP threads sleep instead of spinning: on few or busy cores spinning is many times slower.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint teacher bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train, export, stylize two photos, print the table of figures (STYLE= SEED= RUN=)
	$(BIN)/python train.py run_dir=$(RUN) $(if $(STYLE),style=$(STYLE)) $(if $(SEED),seed=$(SEED))
	$(BIN)/python export.py ckpt=$(RUN)/checkpoints/last.ckpt out=$(RUN)/export
	$(BIN)/python -m smsff.demo --run $(RUN) --model $(RUN)/export

test: $(READY) ## the test suite without the slow tests (ARGS= for pytest)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

test-slow: $(READY) ## the slow tests alone
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

teacher: $(READY) ## make the embedded teacher and its style LoRAs again (hours on CPU)
	$(BIN)/python -m smsff.teacher.recipe

bench: $(READY) ## speed of the default network beside the ResNet-9 of the peers
	$(BIN)/python benchmarks/generators.py --out outputs/bench/generators.json

clean: ## remove .venv and caches; keeps outputs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build src/*.egg-info
	find . -name __pycache__ -type d -prune -not -path './outputs/*' -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing the packages into .venv (some minutes)"
	.venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev,export]' -c constraints.txt
	@touch $@
