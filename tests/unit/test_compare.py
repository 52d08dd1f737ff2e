"""`rfft compare` reads finished runs and leaves a table and a figure."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rfft.errors import UserError
from rfft.evaluation import store
from rfft.evaluation.compare import compare, labels
from rfft.evaluation.ranking import ComparedState
from rfft.evaluation.summary import as_json
from rfft.metrics.estimate import share_estimate


def metrics(rate: float, prop: float) -> dict:
    values = {"available_rate_rfnet": rate, "available_rate_judge": rate - 0.1, "alignment": 0.75}
    values |= {"alignment_prop": prop, "diversity": 0.25, "colourfulness": 40.0, "kid": 0.08}
    return {"metrics": {name: {"value": value} for name, value in values.items()}}


def write_run(folder, regularizer: str, beta: float, rate: float, prop: float):
    folder.mkdir()
    objective = f"objective: {{use: x0_hat, regularizer: {regularizer}, beta: {beta}}}"
    run = f"run: {{name: {folder.name}, seed: 0}}\nrollout: {{grad_steps: 1, guidance_scale: 3}}"
    (folder / "config.yaml").write_text(f"{run}\n{objective}\n")
    summary = {"base": metrics(0.5, 0.3), "tuned": metrics(rate, prop), "steps": 60}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_table_has_the_base_model_and_every_run(tmp_path):
    runs = [
        write_run(tmp_path / "a", "none", 0.0, 0.95, 0.1),
        write_run(tmp_path / "b", "cc", 0.02, 0.9, 0.28),
    ]
    table = compare(runs, tmp_path / "out").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| run", "| ---", "| base", "| a", "| b"]
    assert "| RFFT, CC, beta 0.02 | 60 | 90.0 % | 80.0 % |" in table[4]
    assert "28.0 %" in table[4]
    assert table[2].count("|") == table[0].count("|") == table[1].count("|")
    assert cv2.imread(str(tmp_path / "out" / "comparison.png")).shape[1] > 1000


def evaluate(run: Path, states: dict[str, list[float]]) -> None:
    """The products' available rates in each state, and their resamples, as an evaluation leaves them."""
    cells = [{"id": f"{i}", "prompt": "a park", "seed": 0} for i in range(8)]
    found = {"cells": cells}
    for state, rates in states.items():
        estimate = {"available_rate_rfnet": share_estimate(rates, np.arange(8))}
        store.save_estimates(run, state, estimate)
        found[state] = {"metrics": as_json(estimate)}
    (run / "evaluation.json").write_text(json.dumps(found))


def test_differences_are_paired_across_runs(tmp_path, monkeypatch):
    """Seven of eight products get better: by pairs that is no chance, though the intervals overlap."""
    monkeypatch.setattr("rfft.evaluation.compare.draw_points", lambda *_: None)
    runs = [write_run(tmp_path / name, "cc", 0.02, 0.5, 0.28) for name in "ab"]
    base, tuned = [0.0, 0.2, 0.4, 0.6, 0.8, 0.1, 0.3, 1], [0.2, 0.4, 0.6, 0.8, 1, 0.3, 0.5, 1]
    evaluate(runs[0], {"base": base, "tuned": tuned})
    evaluate(runs[1], {"tuned": base})
    table = compare(runs, tmp_path / "out").read_text()
    assert "by drawing whole products anew" in table
    changes = [line for line in table.splitlines() if line.startswith(("| a |", "| b |"))][-2:]
    assert changes[0].startswith("| a | **+17.5 (+1") and changes[1] == "| b | +0.0 (+0.0 to +0.0) |"


def test_figures_of_accepted_pictures_say_so(tmp_path):
    run = write_run(tmp_path / "picked", "cc", 0.02, 0.9, 0.28)
    summary = json.loads((run / "summary.json").read_text())
    summary["base"]["only_accepted"] = summary["tuned"]["only_accepted"] = True
    (run / "summary.json").write_text(json.dumps(summary))
    table = compare([run], tmp_path / "out").read_text().splitlines()
    assert [row.split(" | ")[1] for row in table[2:]] == ["base, recurrent", "RFFT, CC, beta 0.02, recurrent"]


def test_runs_on_other_grids_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rfft.evaluation.compare.draw_points", lambda *_: None)
    runs = [write_run(tmp_path / name, "cc", 0.02, 0.9, 0.28) for name in "abc"]
    for run, split in zip(runs, ("test", "test", "val"), strict=True):
        cells = [{"id": f"{split}-1", "prompt": "a park", "seed": 0}]
        (run / "evaluation.json").write_text(json.dumps({"cells": cells}))
    told = "c: evaluated on other products, prompts or seeds than base"
    assert told in compare(runs, tmp_path / "out").read_text() and told in capsys.readouterr().err
    assert "other products" not in compare(runs[:2], tmp_path / "out").read_text()


def test_seeds_of_one_arm_have_a_mean_and_a_range(tmp_path, monkeypatch):
    monkeypatch.setattr("rfft.evaluation.compare.draw_points", lambda *_: None)
    runs = [write_run(tmp_path / "other", "kl", 100.0, 0.7, 0.5)]
    for seed, rate in enumerate((0.8, 0.9, 0.7)):
        runs.append(write_run(tmp_path / f"cc-seed{seed}", "cc", 0.02, rate, 0.28))
        config = runs[-1] / "config.yaml"
        config.write_text(config.read_text().replace("seed: 0", f"seed: {seed}"))
    table = compare(runs, tmp_path / "out").read_text()
    (line,) = [row for row in table.splitlines() if row.startswith("| cc-seed0, cc-seed1, cc-seed2 |")]
    assert "| RFFT, CC, beta 0.02 | 3 | 80.0 % (70.0 % to 90.0 %) |" in line
    assert "several seeds" not in compare(runs[:2], tmp_path / "out").read_text()


def test_a_base_model_that_is_a_run_is_not_listed_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("rfft.evaluation.compare.draw_points", lambda *_: None)
    runs = [write_run(tmp_path / name, "cc", 0.02, 0.9, 0.28) for name in ("base", "cc")]
    (runs[0] / "summary.json").write_text(json.dumps({"base": metrics(0.5, 0.3)}))
    table = compare(runs, tmp_path / "out").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| run", "| ---", "| base", "| cc"]


def test_runs_of_one_method_are_told_apart(tmp_path):
    runs = {"a": "cc, beta 0.03", "b": "kl, beta 100", "fast": "cc, beta 0.03"}
    rows = [ComparedState(name, method, "cc", "", {}, tmp_path, "tuned") for name, method in runs.items()]
    assert labels(rows) == ["a", "kl, beta 100", "fast"]


def test_a_run_that_is_not_finished_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no finished run"):
        compare([tmp_path / "a"], tmp_path / "out")
    write_run(tmp_path / "b", "cc", 0.02, 0.9, 0.28)
    (tmp_path / "b/summary.json").write_text('{"steps": 60}')  # evaluate.enabled=false
    with pytest.raises(UserError, match="rfft evaluate .*b` first"):
        compare([tmp_path / "b"], tmp_path / "out")
    (tmp_path / "b/config.yaml").write_text("rfnet: {drop: []}")
    with pytest.raises(UserError, match="b: a run of RFNet"):
        compare([tmp_path / "b"], tmp_path / "out")
