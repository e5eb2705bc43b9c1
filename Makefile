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

# The demo runs in 16 bits where the processor multiplies bfloat16 (about twice as fast), else in 32.
SPEED ?= $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo half || echo plain)

# Idle OpenMP threads sleep instead of spinning: on few or busy cores spinning is many times slower.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo style-lora test test-slow test-slurm test-hydra14 test-faults faults-table lint teacher bench bench-styles clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train, export, stylize two photos, print figures, write report.html (STYLE= SEED= SPEED= RUN=)
	$(BIN)/python train.py data=bundled run_dir=$(RUN) speed=$(SPEED) style=$(or $(STYLE),demo_charcoal) $(if $(SEED),seed=$(SEED))
	$(BIN)/python export.py ckpt=$(RUN)/checkpoints/last.ckpt out=$(RUN)/export
	$(BIN)/python -m smsff.embedded.demo --run $(RUN) --model $(RUN)/export
	$(BIN)/python -m smsff.cli report $(RUN) --out $(RUN)/report.html

style-lora: $(READY) ## train a style LoRA on a known style and look whether it can be distilled (STYLE= RUN= ARGS=)
	$(BIN)/python -m smsff.embedded.style_lora_gate pictures --style $(or $(STYLE),watercolour) --out $(RUN)/pictures
	$(BIN)/python train.py experiment=style_lora name=$(or $(STYLE),watercolour) data.root=$(RUN)/pictures run_dir=$(RUN)/run $(ARGS)
	$(BIN)/python -m smsff.embedded.style_lora_gate measure --run $(RUN)/run

test: $(READY) ## the test suite without the slow tests (ARGS= for pytest)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses=4 --dist=worksteal $(ARGS)

test-slow: $(READY) ## the slow tests alone
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow $(ARGS)

test-slurm: $(READY) ## jobs, sweeps and studies in a Slurm of two nodes that is started here (Debian, root)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/slurm -m slurm $(ARGS)

test-hydra14: $(READY) ## what touches Hydra, on the release candidate of Hydra 1.4 (put into build/hydra14)
	[ -d build/hydra14 ] || $(BIN)/python -m pip install --quiet --no-deps --target build/hydra14 \
	  hydra-core==1.4.0rc3 omegaconf==2.4.1rc1
	PYTHONPATH=$(CURDIR)/build/hydra14$(if $(PYTHONPATH),:$(PYTHONPATH)) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	  PYTHONWARNINGS="ignore:register_new_resolver,ignore:The version_base" \
	  $(BIN)/python -m pytest tests/config tests/training tests/test_readme.py tests/test_cli.py \
	  tests/test_export_script.py $(ARGS)

test-faults: $(READY) ## kill, fill, truncate and corrupt real runs; the counts go to outputs/faults.json and fuzz.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/faults tests/fuzz -m "faults or not faults" $(ARGS)

faults-table: $(READY) ## put the counts of make test-faults into docs/reference/reliability.md
	$(BIN)/python tests/faults/table.py outputs/faults.json outputs/fuzz.json docs/reference/reliability.md

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

teacher: $(READY) ## make an embedded teacher and its style LoRAs (for a GPU; ARGS=--help)
	$(BIN)/python -m smsff.embedded.recipe $(ARGS)

bench: $(READY) ## speed and memory beside the authors' code and other networks, in 15 minutes (ARGS=--quick)
	$(BIN)/python benchmarks/run_all.py --out outputs/bench $(ARGS)

bench-styles: $(READY) ## every objective on the known styles, over hours; goes on where it stopped (ARGS=)
	$(BIN)/python benchmarks/known_styles.py --out outputs/bench_styles $(ARGS)

clean: ## remove .venv and caches; keeps outputs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build src/*.egg-info
	find . -name __pycache__ -type d -prune -not -path './outputs/*' -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing the packages into .venv (some minutes)"
	.venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev,export]' -c constraints.txt
	@touch $@
