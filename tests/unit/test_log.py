"""Metrics that survive a crash and a resume, and an environment without secrets."""

import io
import json
import os
import platform

from rich.console import Console

from rfft.utils.display import TrainingDisplay
from rfft.utils.log import MetricsFile, environment


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_on_disk_at_once_and_nan_becomes_null(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write(1, {"train/f_ac": 0.5, "train/l_cc": float("nan")})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "train/f_ac": 0.5, "train/l_cc": None}]


def test_a_resumed_run_has_every_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in (1, 2, 3):
        metrics.write(step, {"x": step})
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 4, "x"')  # cut off by a crash
    resumed = MetricsFile(path, resume_step=2)
    for step in (3, 4):
        resumed.write(step, {"x": 10 * step})
    assert [(row["step"], row["x"]) for row in rows(path)] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_environment_tells_versions_but_no_names(monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "0123456789abcdef")
    facts = environment()
    assert facts["packages"]["torch"] and facts["cpus"] == os.cpu_count()
    text = json.dumps(facts)
    assert "0123456789abcdef" not in text and platform.node() not in text


def test_a_log_file_gets_plain_lines():
    out = io.StringIO()
    with TrainingDisplay(3, console=Console(file=out, width=100), every_s=0) as display:
        for step in (1, 2, 3):
            display.show(step, "F_AC 0.500", seconds=10.0 * step)
    lines = out.getvalue().splitlines()
    assert lines == [f"step {step}/3  F_AC 0.500  0:{10 * (3 - step):02} left" for step in (1, 2, 3)]


def test_a_terminal_gets_a_live_line_and_hears_when_time_is_up():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    # a resumed run: steps of 15 s, six of them to come, but time for 20 s only
    with TrainingDisplay(10, start=(3, 45.0), max_seconds=80.0, console=console) as display:
        display.show(4, "loss 0.250", seconds=60.0)
    assert "4/10" in out.getvalue() and "loss 0.250" in out.getvalue() and "0:20 left" in out.getvalue()
