"""`rfft sweep` with real runs: what it leaves, what it does not repeat, a stop on the way; W&B's agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rfft.config.sweep import plan_sweep
from rfft.training.sweep import is_finished
from tools.wandb_records import find_offline_runs

ROOT = Path(__file__).parents[2]
SMALL = ["data.count=4", "trainer.steps=2", "trainer.sample_every=0", "trainer.checkpoint_every=1"]
GRID = ["evaluate.count=1", "evaluate.prompts_per_product=1", "evaluate.max_attempts=1"]


@pytest.fixture
def sweep_file(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep in an empty folder: a trained arm, the base model alone, and one that must fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    content = {
        "config": str(world / "config.yaml"),
        "settings": [*SMALL, *GRID, "evaluate.reference=null", "evaluate.probe=null"],
        "arms": [
            {"name": "cc", "seeds": [3]},
            {"name": "base", "train": False},
            {"name": "broken", "settings": ["data.products=nowhere"]},
        ],
    }
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def still_running(folder: Path) -> list[str]:
    """Command lines of the processes that name a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text()
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_a_sweep_is_stopped_goes_on_and_compares(
    sweep_file: Path, world: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    out = Path("runs/trial")
    command = [sys.executable, "-m", "rfft", "sweep", str(sweep_file)]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (out / "cc-seed3" / "config.yaml").exists():
        assert sweep.poll() is None
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    told = sweep.communicate(timeout=300)[1]
    assert sweep.returncode == 75 and "of 3 runs; the same command goes on" in told, told
    assert not still_running(world)

    code, _, told = run_command("sweep", sweep_file, "--jobs", 2)
    assert code == 1, told
    assert "broken: exit code 2, see runs/trial/logs/broken.log: rfft: nowhere: no such folder" in told
    table = (out / "comparison.md").read_text()
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows[:4] == ["| run", "| ---", "| cc-seed3", "| base"]
    assert (out / "comparison.png").exists()
    assert yaml.safe_load((out / "cc-seed3" / "config.yaml").read_text())["run"]["seed"] == 3
    assert "step 2/2" in (out / "logs" / "cc-seed3.log").read_text()
    assert not (out / "base" / "checkpoints").exists()
    done = {run.name: is_finished(run) for run in plan_sweep(sweep_file).runs}
    assert done == {"cc-seed3": True, "base": True, "broken": False}  # the same command repeats but one


@pytest.mark.slow
def test_an_agent_of_wandb_runs_the_same_config(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own agent starts the command; what its server would ask for is asked for here."""
    pytest.importorskip("wandb")
    from wandb.wandb_agent import Agent

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    known = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sw1", "WANDB_DIR": str(tmp_path)}
    known |= {
        "WANDB_RUN_ID": "",
        "WANDB_SWEEP_PARAM_PATH": "",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    known |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)

    shipped = yaml.safe_load((ROOT / "configs" / "sweeps" / "wandb.yaml").read_text())
    chosen = {name: {"value": entry["values"][-1]} for name, entry in shipped["parameters"].items()}
    chosen |= {
        "evaluate.judge": {"value": None},
        "ema.enabled": {"value": True},
    }  # passed on as None and True
    small = [*SMALL, *GRID, "trainer.steps=1", "evaluate.reference=null", "evaluate.probe=null"]
    command = [
        str(world / "config.yaml") if part == "configs/tiny.yaml" else part for part in shipped["command"]
    ]
    agent = Agent(None, None, sweep_id="sw1")
    agent._sweep_command = [*command, *small]
    agent._command_run({"run_id": "abc123", "program": shipped["program"], "args": chosen})
    assert agent._run_processes["abc123"].wait() == 0

    folder = Path("runs/small-abc123")  # the agent's next run has another one
    (found,) = find_offline_runs(folder)
    assert (found.run.run_id, found.run.sweep_id) == ("abc123", "sw1")
    for name, entry in chosen.items():
        assert found.config[name] == pytest.approx(entry["value"])
    assert shipped["metric"]["name"] in found.summary
    assert json.loads((folder / "tracker.json").read_text()) == {"wandb": "abc123"}
