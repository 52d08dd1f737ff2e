"""`rfft benchmark` with real runs: a stop on the way, two programs on one folder, what they leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rfft.config.load import load_config
from rfft.training.costs import costs

ROOT = Path(__file__).parents[2]
SMALL = ["data.count=4", "trainer.sample_every=0", "evaluate.max_attempts=1", "evaluate.reference=null"]


@pytest.fixture
def plan(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trained methods, a search of one of them, and a budget of two steps and a half."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    step = costs(load_config(world / "config.yaml", [*SMALL, "evaluate.enabled=false"])).denoiser
    grid = {"count": 2, "prompts_per_product": 1, "seeds": 2}
    content = {
        "config": str(world / "config.yaml"),
        "settings": SMALL,
        "seeds": [0],
        "budget": 2.5 * step / 1e12,
        "test": {"products": "adworld:test", **grid},
        "search": {"products": "adworld:val", **grid, "settings": {"optimizer.lr": [1e-4, 1e-2]}},
        "methods": [
            {"name": "base", "train": False},
            {"name": "cc", "curve": "CC"},
            {"name": "strong", "settings": ["objective.beta=1"], "curve": "CC", "chosen_from": "cc"},
        ],
        "pairs": [["cc", "strong"]],
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "trial.yaml"


@pytest.mark.slow
def test_a_benchmark_from_one_end_to_the_other(
    plan: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    out, command = Path("bench"), [sys.executable, "-m", "rfft", "benchmark", str(plan), "--out", "bench"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (out / "runs" / "cc-0-seed0" / "config.yaml").exists():
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=300)[1]
    assert first.returncode == 75 and "stopped; the same command goes on" in told, told
    bases = {grid: (out / grid / "base" / "summary.json").stat().st_mtime_ns for grid in ("val", "test")}

    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        told = one.communicate(timeout=600)[1]
        assert one.returncode == 0, told
    assert bases == {grid: (out / grid / "base" / "summary.json").stat().st_mtime_ns for grid in bases}
    written = json.loads((out / "benchmark.json").read_text())
    number = written["search"][0]["chosen"]
    trained = {"cc-0-seed0", "cc-1-seed0", f"strong-{number}-seed0"}
    assert {path.name for path in (out / "runs").iterdir()} == trained
    rows = [(row["method"], row["grid"], row["steps"]) for row in written["rows"]]
    assert rows == [
        *(("cc", "val", 2), ("cc", "val", 2)),
        *(("base", "test", None), ("cc", "test", 2), ("strong", "test", 2)),
    ]
    for row in written["rows"][-2:]:
        assert row["minutes"] > 0 and row["tflop"] > 0 and row["machine"]["cpus"] > 0 and row["date"]
        assert "low" in row["metrics"]["available_rate_judge"]
    logs = "".join(path.read_text() for path in (out / "logs").glob("*.log"))
    assert logs.count("evaluating the base model") == 0 and logs.count("step 2/2") == 3  # nothing twice
    base = json.loads((out / "test" / "base" / "summary.json").read_text())["base"]
    tuned = json.loads((out / "test" / f"cc-{number}-seed0" / "summary.json").read_text())
    assert tuned["base"]["metrics"] == base["metrics"] and tuned["change"]
    page = (out / "benchmark.md").read_text()
    assert (
        "| cc less strong |" in page and "| strong less base |" in page and (out / "benchmark.png").exists()
    )

    code, said, told = run_command("benchmark", plan, "--out", "bench", "--plan-only")
    assert code == 0, told
    assert "strong                            1          2" in said, said
    assert (
        "0.0 TFLOP of the denoiser, about 0.0 hours at the speed of the trainings that are finished" in said
    )
    code, _, told = run_command("benchmark", plan, "--out", "bench", "--only", "x")
    assert code == 2 and "--only x: no such method; there are base, cc, strong" in told
    # Another base model's figures are not taken for this one's.
    run = out / "runs" / "cc-0-seed0"
    settings = ["evaluate.products=adworld:test", "evaluate.count=2", "evaluate.seeds=3"]
    code, _, told = run_command("evaluate", run, *settings, "--out", "x", "--base", out / "test" / "base")
    assert code == 2 and "bench/test/base was evaluated with evaluate." in told and "leave out --base" in told
