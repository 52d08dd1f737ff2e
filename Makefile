# Everything runs in .venv, made on first use and made anew when pyproject.toml or constraints.txt change.
PYTHON ?= python3
EXTRAS ?= dev
BIN := .venv/bin
# Several processes: make compare RFFT=".venv/bin/accelerate launch --config_file launch/multi_gpu.yaml -m rfft"
RFFT ?= $(BIN)/rfft

.DEFAULT_GOAL := help
.PHONY: help setup demo ablation compare test test-launch test-faults test-full lint format clean

help:  ## show this list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## /\1\t/' | expand -t 12

setup: .venv/.installed  ## make .venv with the tested versions

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rfft needs Python 3.10 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: setup  ## the main job: fine-tune the embedded generator and show it get better (15 minutes on two cores)
	$(RFFT) train configs/tiny.yaml

# name:setting:setting; each arm is a run of configs/tiny.yaml with the same seeds, looked at on validation products
ARMS := none:objective.regularizer=none kl-100:objective.regularizer=kl:objective.beta=100 \
        cc-0.03:objective.regularizer=cc:objective.beta=0.03 cc-0.1:objective.regularizer=cc:objective.beta=0.1 \
        cc-0.03-fast:objective.regularizer=cc:objective.beta=0.03:optimizer.lr=1e-3
# make ablation BETAS=more: two more values (24 minutes; runs that are finished are not repeated)
ifdef BETAS
ARMS += kl-30:objective.regularizer=kl:objective.beta=30 cc-0.01:objective.regularizer=cc:objective.beta=0.01
endif
ABLATION := optimizer.lr=5e-4 trainer.steps=50 trainer.max_minutes=null evaluate.products=adworld:val evaluate.reference=adworld:val evaluate.max_attempts=1

ablation: setup  ## no regulariser, KL and CC compared: a table and a figure in runs/ablation (an hour on two cores)
	@set -e; for arm in $(ARMS); do \
	    $(RFFT) train configs/tiny.yaml $(ABLATION) run.name=ablation-$$(echo $$arm | tr ':' ' '); done
	$(BIN)/rfft compare $(foreach arm,$(ARMS),runs/ablation-$(firstword $(subst :, ,$(arm)))) --out runs/ablation

# The paper's table: the base model, what RFNet accepts of it, other words, a run for each way to train it. SETTINGS go
# to all of them, CONFIG may be any base's with the CC term: beta of the last one is its own.
CONFIG ?= configs/tiny.yaml
METHODS := refl:objective.regularizer=none:objective.guidance_scale=1 \
           draft:objective.use=draft:objective.regularizer=none:rollout.grad_steps=4 \
           kl:objective.regularizer=kl:objective.beta=100 cc:objective.regularizer=cc \
           drtune-cc:objective.use=drtune:objective.regularizer=cc
WORDS := a sharp professional product photo, high quality
UNWANTED := floating, wrong size, cluttered, deformed, extra legs
SETTINGS :=
TABLE := runs/compare

compare: setup  ## base, recurrent, prompt engineering, ReFL, DRaFT-K, RFFT by KL, CC, DRTune: the paper's table (an hour on two cores)
	$(RFFT) evaluate $(CONFIG) run.name=compare-recurrent evaluate.only_accepted=true $(SETTINGS)
	$(RFFT) evaluate $(CONFIG) run.name=compare-prompteng "evaluate.quality_words=$(WORDS)" \
	    "evaluate.negative_prompt=$(UNWANTED)" $(SETTINGS)
	@set -e; for method in $(METHODS); do \
	    $(RFFT) train $(CONFIG) run.name=compare-$$(echo $$method | tr ':' ' ') $(SETTINGS); done
	$(BIN)/rfft compare runs/compare-recurrent runs/compare-prompteng \
	    $(foreach method,$(METHODS),runs/compare-$(firstword $(subst :, ,$(method)))) --out $(TABLE)

test: setup  ## the test suite; test-launch, test-faults and test-full run what takes longer
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2  # small tensors: more threads only wait for each other

test-launch: setup  ## start the launch files for CPUs: DDP, ZeRO-2, FSDP2, two torchrun agents (minutes; needs g++)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS),deepspeed]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m launch

test-faults: setup  ## faults injected: killed at 20 points, lost processes, full disks, malformed input (20 minutes)
	KILLS=20 FUZZ=3000 OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "faults or not faults" \
	    tests/recipe/test_faults.py tests/unit/test_malformed.py tests/unit/test_checkpoint.py

test-full: setup  ## one step of full-width SD 1.5, 2.1 and SDXL in each mode (up to 8 GB of memory, minutes each)
	$(BIN)/pytest -q -m full -s tests/full

lint: setup  ## style, undefined names, complexity, the dependency rule, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the tools cached (runs/ and .venv stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist
