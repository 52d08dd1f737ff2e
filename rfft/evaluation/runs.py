"""What is made of a run that is there: `rfft evaluate` (or a config's base model alone) and `rfft export`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from rfft import build
from rfft.config.load import MAY_CHANGE, load_config, read_resolved, to_yaml
from rfft.config.schema import Config
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.evaluation.evaluator import Evaluator, show
from rfft.evaluation.grid import describe_grid, refuse_another
from rfft.evaluation.guardrails import show_result
from rfft.evaluation.known_base import take_base
from rfft.evaluation.report import write_report
from rfft.evaluation.tables import painted, rows, table
from rfft.generation.export import export_bundle
from rfft.generation.model_card import CardMetrics, write_card
from rfft.generation.settings import SETTINGS_FILE, write_settings
from rfft.utils.atomic_io import new_folder, refuse_existing
from rfft.utils.checkpoint import Checkpoints, step_of
from rfft.utils.faults import painting
from rfft.utils.lock import FolderLock, locks_run
from rfft.utils.log import messages, open_run, write_environment
from rfft.utils.processes import joined, rank


def choose_checkpoint(run: Path, best: bool = False, step: int | None = None) -> Path:
    """Return the best checkpoint of a run, that of a step, or by default that whose weights it exported.

    A run that has not come to its end has exported nothing: its newest checkpoint is taken then.
    """
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    if best and step is not None:
        raise UserError("--best and --step name two checkpoints: give one of them")
    if best:
        found = checkpoints.best()
        if found is None:
            raise UserError(f"{run}: no best checkpoint; it is chosen while training, with evaluate.every=N")
        return found
    wanted = exported_step(run) if step is None else step
    found = checkpoints.latest() if wanted is None else checkpoints.at(wanted)
    if found is None and wanted is not None and checkpoints.steps():
        known = ", ".join(map(str, checkpoints.steps()))
        raise UserError(f"{run}: no checkpoint of step {wanted}; there are those of step {known}: --step N")
    if found is None:
        raise UserError(f"{run}: no checkpoint yet; train first, with rfft train")
    return found


def exported_step(run: Path) -> int | None:
    """Return the step of the weights that a run evaluated and exported, if it has come to that."""
    return store.read_json(run / store.SUMMARY).get("checkpoint")


@locks_run
def evaluate(
    config: Config,
    run: Path,
    best: bool = False,
    step: int | None = None,
    out: Path | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run's tuned model beside its base model; leave metrics, pictures and report.

    best, step: as in choose_checkpoint(). They go into the run's folder, where those of another grid or
    checkpoint are not replaced, or into the folder `out`. base: a folder with the base model's evaluation on
    this grid, which is taken from there. Returns the summary.
    """
    checkpoint, folder = choose_checkpoint(run, best, step), out or run
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        bundle = build.load_trained(config, checkpoint, device)
        evaluator = Evaluator(config, bundle, build.build_rfnet(config, device))
        grid = describe_grid(evaluator)
        refuse_another(folder, grid, step_of(checkpoint))
        if rank() == 0 and folder != run:
            open_run(folder, to_yaml(config), MAY_CHANGE)
            write_environment(folder)
        if base is None:
            _evaluate(evaluator, folder, "base", console)
        elif rank() == 0:
            take_base(base, folder, config, grid)
        _evaluate(evaluator, folder, "tuned", console, step_of(checkpoint))
        if rank() > 0:
            return {}
    trained = store.read_json(folder / store.SUMMARY).get("steps", step_of(checkpoint))
    summary = store.finish(folder, {"steps": trained}, step_of(checkpoint))
    show_result(console, config, summary)
    written = [folder / name for name in (store.EVALUATION, store.SUMMARY, store.COMPARISON)]
    written.append(write_report(folder))  # or the old one would contradict these metrics
    told = f"step {step_of(checkpoint)} evaluated; written: {', '.join(map(str, written))}"
    console.print(told, highlight=False, soft_wrap=True)
    return summary


def evaluate_base(config: Config, out: Path | None = None) -> Path:
    """Evaluate a config's base model alone, into its run's folder or `out`: a row for `rfft compare`."""
    run = out or Path(config.run.out) / config.run.name
    if (run / "checkpoints").exists():
        raise UserError(f"{run} is a training run: `rfft evaluate {run}`, or choose another run.name")
    with painting(config.evaluate.batch_size), joined() as device, FolderLock(run) as lock:
        console = messages(quiet=rank() > 0)
        bundle = build.build_bundle(config, device, trained=False)
        evaluator = Evaluator(config, bundle, build.build_rfnet(config, device))
        refuse_another(run, describe_grid(evaluator))
        if rank() == 0:
            open_run(run, to_yaml(config), MAY_CHANGE)
            lock.acquire()
            write_environment(run)
        _evaluate(evaluator, run, "base", console)
        if rank() > 0:
            return run
    summary = store.finish_base(run)
    console.print(table(summary["base"]))
    written = [run / store.EVALUATION, run / store.SUMMARY, write_report(run)]
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    return run


def _evaluate(
    evaluator: Evaluator, folder: Path, state: str, console: Console, checkpoint: int | None = None
) -> None:
    """Evaluate one state: all processes paint, the first one writes."""
    with Progress(console=console) as progress:
        task = progress.add_task(f"{state} model", total=None)
        found = evaluator(state == "base", partial(show, progress, task), folder)
    if rank() == 0:
        store.record(folder, state, describe_grid(evaluator), found, checkpoint)


@locks_run
def export_run(
    run: Path, format: str, out: Path | None = None, best: bool = False, step: int | None = None
) -> Path:
    """Write the weights of a run's checkpoint with a model card, all or nothing; return the folder.

    best, step: as in choose_checkpoint(). By default the folder is RUN/export/FORMAT, for another checkpoint
    than the one that the run exported RUN/export/FORMAT-step-N. Below RUN/export an earlier export is
    replaced; anywhere else the folder must be new.
    """
    checkpoint = choose_checkpoint(run, best, step)
    taken = step_of(checkpoint)
    own = taken == exported_step(run) or not (best or step is not None)
    out = out or run / "export" / (format if own else f"{format}-step-{taken}")
    inside = (run / "export").resolve() in out.resolve().parents
    if not inside:
        refuse_existing(out)
    config = load_config(run / "config.yaml")
    bundle = build.load_trained(config, checkpoint, "cpu")
    with new_folder(out, replace=inside) as draft:
        export_bundle(bundle, format, draft, config.run.name)
        resolved, metrics = read_resolved(run / "config.yaml"), _card_metrics(run, taken)
        write_settings(draft / SETTINGS_FILE, config, format)
        write_card(draft / "README.md", resolved, format, taken, bundle, metrics)
    return out


def _card_metrics(run: Path, step: int) -> CardMetrics:
    """Return the run's metrics, if they are of the weights of this step."""
    summary = store.read_json(run / store.SUMMARY)
    if summary.get("checkpoint") != step or not all(summary.get(state) for state in store.STATES):
        return CardMetrics()
    base = summary["base"]
    return CardMetrics(rows(base, summary["tuned"], summary["change"]), base["images"], painted(base))
