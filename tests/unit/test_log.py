"""Metrics that survive a crash and a resume, and an environment without secrets."""

import io
import json
import os
import platform

from rich.console import Console

from rfft.utils.log import MetricsFile, TrainingDisplay, environment


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
    with TrainingDisplay(3, "L_CC", console=Console(file=out, width=100), every_s=0) as display:
        for step in (1, 2, 3):
            display.update(step, f_ac=0.5, reg=0.25, available=0.75)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("step 1/3  F_AC 0.500  L_CC 0.250  available  75%  0:0")
    assert lines[-1].endswith("0:00 left")


def test_a_terminal_gets_a_live_line():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    with TrainingDisplay(10, "L_KL", start=4, console=console) as display:
        display.update(5, f_ac=0.5, reg=0.25, available=1.0)
    assert "5/10" in out.getvalue() and "L_KL 0.250" in out.getvalue() and "left" in out.getvalue()
