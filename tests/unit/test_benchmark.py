"""A benchmark's plan becomes runs of equal cost; the rule of its search; its tables. Hand-worked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from rfft.config.benchmark import combinations, load_method, plan_benchmark
from rfft.config.load import load_config, to_yaml
from rfft.config.schema import EvaluateConfig
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.evaluation.benchmark_report import Chosen, Entry, write_benchmark
from rfft.evaluation.choice import choose
from rfft.evaluation.methods import method_of
from rfft.evaluation.summary import as_json
from rfft.metrics.estimate import share_estimate
from rfft.training import trials
from rfft.training.benchmark import Study, stages
from rfft.training.trials import StepCost, is_done, paid_steps

PLANS = Path(__file__).parents[2] / "configs" / "benchmarks"
PLAN = """
config: tiny
settings: [trainer.batch_size=2]
seeds: [0, 1]
budget: 3
search: {settings: {optimizer.lr: [1e-4, 1e-3]}}
methods:
  - {name: base, train: false}
  - {name: cc, settings: [objective.beta=0.1]}
  - {name: strong, settings: [objective.beta=1], chosen_from: cc, seeds: [4]}
  - {name: nft, settings: [objective.use=nft], search: {optimizer.lr: [1e-5]}}
"""
PRICES = {"rfft": 0.4e12, "nft": 1.1e12}  # FLOPs of a step by objective


@pytest.fixture
def plan_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """plan_of(text): the trials of a plan, counted at PRICES."""
    monkeypatch.setattr(
        trials, "costs", lambda config: Costed(PRICES[config.objective.use], 1e9 * config.trainer.batch_size)
    )
    (tmp_path / "trial.yaml").write_text(PLAN)
    return lambda: Study(plan_benchmark(tmp_path / "trial.yaml", tmp_path / "out"))


class Costed:
    def __init__(self, denoiser: float, forward: float) -> None:
        self.denoiser, self.forward = denoiser, forward


def test_every_method_makes_the_steps_that_the_budget_pays(plan_of: Callable[..., Study]) -> None:
    """3 TFLOP are 7 steps at 0.4 and 2 at 1.1."""
    study = plan_of()
    steps = {name: every[0][0].steps for name, every in study.tested.items() if name != "base"}
    assert steps == {"cc": 7, "strong": 7, "nft": 2}
    assert paid_steps(1.2e12, 0.4e12) == 3
    with pytest.raises(UserError, match=r"a step costs 0.4 TFLOP, more than the budget of 0.3"):
        paid_steps(0.3e12, 0.4e12)


def test_trials_of_a_plan(plan_of: Callable[..., Study]) -> None:
    study = plan_of()
    assert {name: [t.name for t in found] for name, found in study.searched.items()} == {
        "cc": ["cc-0-seed0", "cc-1-seed0"]
    }
    tested = {name: [[t.name for t in found] for found in every] for name, every in study.tested.items()}
    assert tested == {
        "base": [["base"]],
        "cc": [["cc-0-seed0", "cc-0-seed1"], ["cc-1-seed0", "cc-1-seed1"]],
        "strong": [["strong-0-seed4"], ["strong-1-seed4"]],
        "nft": [["nft-seed0", "nft-seed1"]],  # one value is no choice
    }
    assert study.final(study.plan.method("strong")) == []  # before the search of cc is finished
    assert [t.name for t in study.final(study.plan.method("nft"))] == ["nft-seed0", "nft-seed1"]
    (base, search, test) = (stage() for _, stage in stages(study, [study.plan.method("strong")]))
    assert [job.name for job in base] == ["val-base", "test-base"]
    assert [job.name for job in search] == ["val-cc-0-seed0", "val-cc-1-seed0"] and not test
    # What is started reads to the config by which it is known to be done, on the grid of its stage.
    training, evaluation = search[1].tasks
    assert training.command[3] == "train" and evaluation.command[3] == "evaluate"
    config = load_config(training.command[4], training.command[5:])
    assert (config.trainer.steps, config.optimizer.lr, config.objective.beta) == (7, 1e-3, 0.1)
    assert not config.evaluate.enabled and config.trainer.max_minutes is None and config.run.seed == 0
    trial, alone = study.searched["cc"][1], study.base()[0]
    assert trial.config() == config
    evaluated = load_config(training.command[4], [*training.command[5:], *evaluation.command[5:-4]])
    assert trial.config("val") == evaluated and evaluated.evaluate.count == 24
    (painting,) = base[1].tasks
    assert alone.config("test") == load_config(painting.command[4], painting.command[5:])
    run = study.plan.out / "runs" / "cc-1-seed0"
    assert config.run.out == str(run.parent) and evaluation.command[4] == str(run)
    assert "evaluate.products=adworld:val" in evaluation.command
    assert evaluation.command[-4:] == (
        *("--out", str(study.plan.out / "val" / "cc-1-seed0")),
        *("--base", str(study.plan.out / "val" / "base")),
    )
    assert (training.size, evaluation.size) == (7 * 0.4e12, 24 * 2 * 2 * 40 * 2e9)


def test_a_command_is_done_by_its_config_and_its_summary(tmp_path: Path) -> None:
    settings = load_config("tiny")
    assert not is_done(tmp_path, settings, "steps", 7)
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    for summary, done in (({}, False), ({"steps": 6}, False), ({"steps": 7}, True)):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert is_done(tmp_path, settings, "steps", 7) == done
    assert not is_done(tmp_path, load_config("tiny", ["optimizer.lr=1"]), "steps", 7)


def test_a_run_that_has_cost_more_is_not_passed_over(plan_of: Callable[..., Study], tmp_path: Path) -> None:
    run = tmp_path / "out" / "runs" / "nft-seed1"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"steps": 3}')
    with pytest.raises(UserError, match=r"^method nft: \S+ has made 3 steps, the plan pays 2: remove"):
        plan_of()


def test_every_combination_of_the_search() -> None:
    assert combinations({}) == ((),)
    found = combinations({"optimizer.lr": [1e-4, 1e-3], "objective.use": ["refl", "rfft"]})
    assert found[1] == ("optimizer.lr=0.0001", "objective.use=rfft") and len(found) == 4


BASE = {"available_rate_rfnet": 0.5, "alignment": 0.9, "diversity": 0.4}


def at(rate: float, alignment: float, diversity: float, **more: float) -> dict[str, float]:
    return {"available_rate_rfnet": rate, "alignment": alignment, "diversity": diversity, **more}


def test_the_rule_of_the_search() -> None:
    """Highest rate of those that keep 90 % of alignment and diversity; else the one that keeps most."""
    settings = EvaluateConfig()
    good = [at(0.6, 0.9, 0.4), at(0.8, 0.82, 0.37), at(0.95, 0.9, 0.35), at(0.8, 0.9, 0.4)]
    assert choose(BASE, good, settings) == 1  # of two at 80 % the first; 95 % pays an eighth of the diversity
    bad = [at(0.99, 0.45, 0.4), at(0.9, 0.81, 0.3), at(0.95, 0.72, 0.36)]  # keep 50, 75 and 80 %
    assert choose(BASE, bad, settings) == 2
    judged = [at(0.6, 0.9, 0.4, available_rate_judge=0.9), at(0.7, 0.9, 0.4, available_rate_judge=0.1)]
    assert choose(BASE, judged, settings) == 1  # nobody asks the judge
    monitored = [
        found | {"available_rate_monitor": rate} for found, rate in zip(judged, (0.6, 0.5), strict=True)
    ]
    assert choose(BASE, monitored, EvaluateConfig(monitor="another")) == 0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("budget: 3", "", "a benchmark needs a budget"),
        ("config: tiny", "", "a benchmark needs a base"),
        ("seeds: [0, 1]", "seeds: []", "seeds is empty"),
        ("{name: base, train: false}", "{name: base}", "methods lacks what all are compared with"),
        ("name: strong", "name: cc", "two methods are called cc"),
        ("name: strong", "name: ../x", "method ../x: the name must be fit for a folder"),
        ("chosen_from: cc", "chosen_from: c", "method strong: chosen_from=c must be a trained method"),
        ("chosen_from: cc", "chosen_from: base", "method strong: chosen_from=base must be a trained method"),
        (
            "objective.beta=0.1",
            "objective.bta=1",
            "method cc: .*did you mean 'beta'|method cc: .*objective.bta",
        ),
        ("objective.beta=0.1", "trainer.steps=9", "method cc: trainer.steps: the benchmark gives every run"),
        ("[1e-4, 1e-3]", "3", "search: optimizer.lr is 3; it must be a list of values"),
        ("[1e-4, 1e-3]", "[0]", "method cc: optimizer.lr is 0"),
        ("search: {", "test: {products: 'adworld:val'}\nsearch: {", "test and search both have adworld:val"),
        ("search: {", "test: {count: 0}\nsearch: {", "test.count is 0; it must be at least 1"),
        ("seeds: [0, 1]", "seeds: [0]\npairs: [[cc, kl]]", "each must be two methods"),
        ("seeds: [0, 1]", "seed: [0]", "unknown key 'seed'; did you mean 'seeds'"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in PLAN
    (tmp_path / "trial.yaml").write_text(PLAN.replace(before, after, 1))
    with pytest.raises(UserError, match=rf"^[^\n]*trial.yaml[^\n]*({message})[^\n]*$"):
        plan_benchmark(tmp_path / "trial.yaml")


@pytest.mark.slow
def test_the_core_plan_has_the_rows_of_the_question() -> None:
    plan = plan_benchmark(PLANS / "core.yaml")
    configs = {m.name: load_method(plan.source, m, m.candidates[0]) for m in plan.methods}
    names = {name: method_of(asdict(config), "tuned", {}) for name, config in configs.items()}
    rows = {names[m.name] for m in plan.methods if m.train and len(m.seeds) == 3}
    assert {
        *("ReFL", "RFFT, no regularizer", "RFFT, CC, beta auto at drift 0.02", "DRaFT-4", "DRTune"),
        *("FlowBP-Sparse", "DDPO", "DiffusionNFT", "Diffusion-DPO"),
        *(f"{name}, CC, beta 0.03" for name in ("RFFT", "DRaFT-4", "DRTune", "FlowBP-Sparse")),
        *(f"RFFT, CC, beta {beta}" for beta in (0.01, 0.1, 0.3)),
        *(f"RFFT, KL, beta {beta}" for beta in (10, 30, 100, 300)),
    } == rows
    alone = {m.name: configs[m.name].evaluate for m in plan.methods if not m.train}
    assert alone["recurrent"].only_accepted and alone["recurrent"].max_attempts == 5
    searched = {m.candidates for m in plan.methods if m.train}
    assert len(searched) == 1 and len(next(iter(searched))) == 3  # the same search for every method
    assert (plan.test.count, plan.test.prompts_per_product, plan.test.seeds) == (48, 2, 4)


def finished(folder: Path, state: str, rates: list[list[float]], config: list[str]) -> Path:
    """An evaluation of three products, with RFNet's verdicts on their two pictures; the judge accepts all."""
    folder.mkdir(parents=True)
    found = {
        "available_rate_rfnet": share_estimate(np.array(rates), np.arange(3)),
        "available_rate_judge": share_estimate(np.ones((3, 2)), np.arange(3)),
    }
    cells = [{"id": f"p{i}", "prompt": "", "seed": s} for i in range(3) for s in range(2)]
    metrics = {"metrics": as_json(found)}
    store.write_json(folder / store.EVALUATION, {"cells": cells, state: metrics})
    store.write_json(folder / store.SUMMARY, {state: metrics, "steps": 5, "seconds": 60.0})
    store.save_estimates(folder, state, found)
    (folder / "config.yaml").write_text(to_yaml(load_config("tiny", config)))
    return folder


def test_the_page(tmp_path: Path) -> None:
    """The mean of two seeds, 4/6 and 6/6, against the base's 3/6: +33.3 points, by product -0/+50/+50."""
    names = {"base": [[1, 0], [1, 0], [1, 0]], "s0": [[1, 0], [1, 0], [1, 1]], "s1": [[1, 1]] * 3}
    folders = {
        name: finished(tmp_path / name, "base" if name == "base" else "tuned", rates, [f"run.name={name}"])
        for name, rates in names.items()
    }
    entries = [Entry("base", "test", folders["base"], ())]
    entries += [
        Entry("cc", "test", folders[name], ("optimizer.lr=1",), folders[name], seed, 2e12, "CC")
        for seed, name in enumerate(("s0", "s1"))
    ]
    chosen = Chosen("cc", [("optimizer.lr=1",), ("optimizer.lr=2",)], [{"available_rate_rfnet": 0.75}, {}], 0)
    facts = {"plan": "trial", "budget_tflop": 2}
    page = write_benchmark(tmp_path, facts, entries, [chosen], [("cc", "base"), ("cc", "gone")]).read_text()
    judged = "100.0 % (43.9 to 100.0) |"  # Wilson's for three of three products, with two seeds as with one
    assert f"| base | base |  |  |  |  | 50.0 % (50.0 to 50.0) | {judged}" in page
    assert f"| cc | RFFT, CC, beta 0.03 | 2 | 5 | 2.0 | 1.0 | 83.3 % (75.0 to 100.0) | {judged}" in page
    assert page.count("| cc less base | **+33.3 (+25.0 to +50.0)** |") == 2 and "gone" not in page
    assert "83.3 % (66.7 % to 100.0 %)" in page  # over the seeds
    assert "| optimizer.lr=1 | 75.0 % | yes |" in page
    written = json.loads((tmp_path / "benchmark.json").read_text())
    rows = [
        (row["method"], row["seed"], row["steps"], row["tflop"], row["minutes"]) for row in written["rows"]
    ]
    assert rows == [("base", None, None, 0.0, None), ("cc", 0, 5, 2.0, 1.0), ("cc", 1, 5, 2.0, 1.0)]
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


def test_costs_are_counted_once_for_all_that_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(trials, "costs", lambda config: asked.append(config) or Costed(3.0, 2.0))
    costs_of = trials.StepCosts()
    for settings in ([], ["optimizer.lr=1", "objective.beta=3", "run.seed=4"], ["rollout.grad_steps=2"]):
        assert costs_of(load_config("tiny", settings)) == StepCost(3.0, 2.0)
    assert len(asked) == 2
