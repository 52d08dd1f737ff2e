"""Bases of full width (fewer layers): a step in each mode, and its memory beside what `rfft check` says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfft.training.costs import costs
from tests.bases import WIDE
from tests.full.measure import settings

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.15


def measure(name: str, mode: str, folder: Path, *overrides: str) -> dict[str, float]:
    """What tests/full/measure.py found, in a process of its own."""
    command = [sys.executable, "-m", "tests.full.measure", name, mode, str(folder), *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert math.isfinite(found["loss"]) and found["grad_norm"] > 0
    assert found["moved"] > 0.99 * found["watched"] and found["strays"] == 0
    return found


@pytest.mark.full
@pytest.mark.parametrize("mode", ["denoiser_lora", "controlnet_lora", "controlnet"])
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", *WIDE])
def test_a_step_takes_the_memory_that_was_foretold(name: str, mode: str, tmp_path: Path) -> None:
    found = measure(name, mode, tmp_path)
    if "stock_off" in found:  # as loaded by diffusers' own pipeline
        assert found["stock_off"] < 1e-3 * found["changed"]

    counted = costs(settings(name, mode, tmp_path, []))
    foretold = counted.together / 2**30
    taken = (found["peak"] - found["before"]) / 2**30
    gib = {key: found[key] / 2**30 for key in ("peak", "before")}
    print(
        f"\n{name} {mode}: {found['parameters'] / 1e6:,.0f} M parameters; peak {gib['peak']:.2f} GiB, of it "
        f"libraries and rewards {gib['before']:.2f}; foretold without libraries {foretold:.2f}; "
        f"{found['cpu_seconds']:.0f} CPU seconds\n{counted.memory()}"
    )
    assert taken == pytest.approx(foretold, rel=TOLERANCE)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["denoiser_lora", "controlnet"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_step_with_frozen_parts_in_bfloat16(name: str, mode: str, tmp_path: Path) -> None:
    half = ["model.dtype=bfloat16", "trainer.mixed_precision=bf16", "objective.precision=bf16"]
    found = measure(name, mode, tmp_path, *half)
    taken = (found["peak"] - found["before"]) / 2**30
    print(f"\n{name} {mode} in bfloat16: peak {taken:.2f} GiB, libraries and rewards left out")
