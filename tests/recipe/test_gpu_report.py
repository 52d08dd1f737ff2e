"""The way of `make gpu`, up to the card: on a CPU with small networks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, str(ROOT / "tools/gpu_report.py"), "--device", "cpu", "--quick"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [*TOOL, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_mode_of_both_bases_has_a_row(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--minutes", "60")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "CPU.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    steps = [row for row in rows if row and row[0].startswith(("SD 1.5", "SDXL"))]
    assert len(steps) == 2 * 3
    assert all(len(row) == 14 for row in steps)
    for row in steps:
        whole, *phases = map(float, row[3:9])
        assert whole > 0 and abs(sum(phases) - whole) < 0.05
    assert "| `rfft train configs/tiny.yaml` | exit code 0 |" in page
    assert "Left out" not in page


@pytest.mark.slow
def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    assert run("--out", str(tmp_path), "--minutes", "0").returncode == 0
    page = (tmp_path / "CPU.md").read_text()
    assert "Left out, as the time was over: rfft train tiny, sd15 denoiser_lora mixed" in page
