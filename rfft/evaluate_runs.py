"""`rfft evaluate`: a run's two states, or a config's base model alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from rfft import build, results
from rfft.config import MAY_CHANGE, Config, to_yaml
from rfft.errors import UserError
from rfft.evaluate import Evaluator, show, show_result
from rfft.export import load_trained
from rfft.log import open_run, write_environment


def evaluate(config: Config, run: Path) -> None:
    """Evaluate a run's last checkpoint beside its base model; leaves the figures and pictures in the run."""
    console = Console(stderr=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bundle, step = load_trained(config, run, device)
    evaluator = Evaluator(config, bundle, build.build_reward(config, device))
    with Progress(console=console) as progress:
        for name in ("base", "tuned"):
            task = progress.add_task(f"{name} model", total=None)
            done = partial(show, progress, task)
            evaluator.record(run, name, evaluator(reference=name == "base", report=done))
    found = results.finish(run, {"steps": step})
    show_result(console, config, found)
    console.print(f"written: {run / results.EVALUATION}, {run / results.SUMMARY}, {run / results.COMPARISON}")


def evaluate_base(config: Config) -> Path:
    """Evaluate a config's base model alone, into its run's folder: a row for `rfft compare`."""
    run, console = Path(config.run.out) / config.run.name, Console(stderr=True)
    if (run / "checkpoints").exists():
        raise UserError(f"{run} is a training run: `rfft evaluate {run}`, or choose another run.name")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bundle = build.build_bundle(config, device, trained=False)
    evaluator = Evaluator(config, bundle, build.build_reward(config, device))
    open_run(run, to_yaml(config), MAY_CHANGE)
    write_environment(run)
    with Progress(console=console) as progress:
        task = progress.add_task("base model", total=None)
        evaluator.record(run, "base", evaluator(reference=True, report=partial(show, progress, task)))
    results.finish_base(run)
    console.print(f"written: {run / results.EVALUATION}, {run / results.SUMMARY}")
    return run
