# Everything runs in .venv, made on first use and made anew when pyproject.toml or constraints.txt change.
PYTHON ?= python3
EXTRAS ?= dev
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo ablation test test-launch test-faults lint format clean

help:  ## show this list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## /\1\t/' | expand -t 12

setup: .venv/.installed  ## make .venv with the tested versions

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rfft needs Python 3.10 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: setup  ## the main job: fine-tune the embedded generator and show it get better (15 minutes on two cores)
	$(BIN)/rfft train configs/tiny.yaml

# name:setting:setting; each arm is a run of configs/tiny.yaml with the same seeds, looked at on validation products
ARMS := none:objective.regularizer=none \
        kl-10:objective.regularizer=kl:objective.beta=10 kl-100:objective.regularizer=kl:objective.beta=100 \
        cc-0.02:objective.regularizer=cc:objective.beta=0.02 cc-0.1:objective.regularizer=cc:objective.beta=0.1
ABLATION := trainer.max_minutes=null evaluate.products=adworld:val

ablation: setup  ## no regulariser, KL and CC compared: a table and a figure in runs/ablation (75 minutes on two cores)
	@set -e; for arm in $(ARMS); do \
	    $(BIN)/rfft train configs/tiny.yaml run.name=ablation-$$(echo $$arm | tr ':' ' ') $(ABLATION); done
	$(BIN)/rfft compare $(foreach arm,$(ARMS),runs/ablation-$(firstword $(subst :, ,$(arm)))) --out runs/ablation

test: setup  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -q  # small tensors: more threads only wait for each other

test-launch: setup  ## start the launch files for CPUs: DDP, ZeRO-2, two torchrun agents (minutes; needs g++)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS),deepspeed]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m launch

test-faults: setup  ## faults injected: killed at 20 points, lost processes, full disks, malformed input (20 minutes)
	KILLS=20 FUZZ=3000 OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "faults or not faults" \
	    tests/recipe/test_faults.py tests/unit/test_malformed.py tests/unit/test_checkpoint.py

lint: setup  ## style, undefined names, complexity, the dependency rule, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the tools cached (runs/ and .venv stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist
