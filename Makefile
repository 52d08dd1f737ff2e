# Everything runs in .venv, made on first use and made anew when pyproject.toml or constraints.txt change.
PYTHON ?= python3
EXTRAS ?= dev
BIN := .venv/bin
RFFT := $(BIN)/rfft

.DEFAULT_GOAL := help
.PHONY: help setup demo ablation compare test test-slow test-launch test-faults test-cuda test-full bench test-label-studio test-long lint format clean

help:  ## show this list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## /\1\t/' | expand -t 12

setup: .venv/.installed  ## make .venv with the tested versions

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rfft needs Python 3.10 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: setup  ## the main job: fine-tune the embedded generator and show it get better (12 to 17 minutes on two cores)
	$(RFFT) train configs/tiny.yaml

# More for the two below: make compare SWEEP="--jobs 2 --config configs/sd15_lora_cc.yaml trainer.steps=500"
SWEEP :=

ablation: setup  ## no regularizer, KL and CC compared: a table and a figure in runs/ablation (1.5 hours on two cores)
	$(RFFT) sweep configs/sweeps/ablation.yaml $(SWEEP)

compare: setup  ## base, recurrent, prompt engineering, ReFL, DRaFT-K, RFFT by KL, CC, DRTune: the paper's table (an hour)
	$(RFFT) sweep configs/sweeps/compare.yaml $(SWEEP)

test: setup  ## the test suite; test-slow, test-launch, test-faults, test-cuda and test-full run the rest
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2  # small tensors: more threads only wait for each other

test-slow: setup  ## embedded networks trained and resumed, RFNet by two processes, a sweep stopped (4 minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m slow

test-launch: setup  ## start the launch files for CPUs: DDP, ZeRO-2, FSDP2, two torchrun agents (minutes; needs g++)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS),deepspeed]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m launch

test-faults: setup  ## faults injected: killed at 20 points, lost processes, full disks, malformed input (20 minutes)
	KILLS=20 FUZZ=3000 OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "faults or not faults" \
	    tests/recipe/test_faults.py tests/unit/test_malformed.py tests/unit/test_checkpoint.py

test-cuda: setup  ## half precision, TF32 and the launch files on one CUDA device
	$(BIN)/pytest -q -m cuda tests/cuda

test-label-studio:  ## pictures to a real Label Studio server, annotations back (two environments of its own, minutes)
	$(PYTHON) -m venv .venv-label-studio/server
	.venv-label-studio/server/bin/pip install --quiet label-studio
	$(PYTHON) -m venv .venv-label-studio/client
	grep -viE '^(opencv|pillow)' constraints.txt > .venv-label-studio/constraints.txt  # label-studio-sdk pins older ones
	.venv-label-studio/client/bin/pip install --quiet --constraint .venv-label-studio/constraints.txt --editable ".[$(EXTRAS),label-studio]"
	LABEL_STUDIO=.venv-label-studio/server/bin/label-studio .venv-label-studio/client/bin/pytest -q -m label_studio

test-long: setup  ## simulated raters label, RFNet and the generator learn from them, two rounds (hours)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m long -s

gpu: setup  ## tests, a training, SD 1.5 and SDXL steps on this machine's GPUs: docs/gpu/CARD.md (10 minutes at most)
	$(BIN)/python tools/gpu_report.py

test-full: setup  ## one step of full-width SD 1.5, 2.1, SDXL, SD 3.5, FLUX and Qwen-Image in each mode (up to 8 GB of memory, minutes each)
	$(BIN)/pytest -q -m full -s tests/full

bench: setup bench/.venv/.installed  ## RFFT, trl and ReFL side by side, and the machine's own speed (half an hour)
	$(BIN)/python -m bench.run

bench/.venv/.installed: bench/requirements.txt
	$(PYTHON) -m venv bench/.venv
	bench/.venv/bin/pip install --quiet --requirement bench/requirements.txt
	@touch $@

lint: setup  ## style, undefined names, complexity, the dependency rule, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the tools cached (runs/ and .venv stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist
