"""`rfft evaluate`: a run's two states, or a config's base model alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from rfft import build, results
from rfft.config import MAY_CHANGE, Config, to_yaml
from rfft.errors import UserError
from rfft.evaluate import Evaluator, show, show_result
from rfft.export import load_trained
from rfft.faults import painting
from rfft.log import messages, open_run, write_environment
from rfft.processes import joined, rank
from rfft.report import write_report


def evaluate(config: Config, run: Path) -> None:
    """Evaluate a run's last checkpoint beside its base model; leaves figures, pictures, report in the run."""
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        bundle, step = load_trained(config, run, device)
        evaluator = Evaluator(config, bundle, build.build_reward(config, device))
        for state in ("base", "tuned"):
            _evaluate(evaluator, run, state, console)
        if rank() > 0:
            return
    found = results.finish(run, {"steps": step})
    show_result(console, config, found)
    written = [run / name for name in (results.EVALUATION, results.SUMMARY, results.COMPARISON)]
    written.append(write_report(run))  # or the old one would contradict these figures
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)


def evaluate_base(config: Config) -> Path:
    """Evaluate a config's base model alone, into its run's folder: a row for `rfft compare`."""
    run = Path(config.run.out) / config.run.name
    if (run / "checkpoints").exists():
        raise UserError(f"{run} is a training run: `rfft evaluate {run}`, or choose another run.name")
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        bundle = build.build_bundle(config, device, trained=False)
        evaluator = Evaluator(config, bundle, build.build_reward(config, device))
        if rank() == 0:
            open_run(run, to_yaml(config), MAY_CHANGE)
            write_environment(run)
        _evaluate(evaluator, run, "base", console)
        if rank() > 0:
            return run
    found = results.finish_base(run)
    console.print(results.table(found["base"]))
    written = [run / results.EVALUATION, run / results.SUMMARY, write_report(run)]
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    return run


def _evaluate(evaluator: Evaluator, run: Path, state: str, console: Console) -> None:
    """All processes paint, the first one writes."""
    with Progress(console=console) as progress:
        task = progress.add_task(f"{state} model", total=None)
        found = evaluator(reference=state == "base", report=partial(show, progress, task))
    if rank() == 0:
        evaluator.record(run, state, found)
