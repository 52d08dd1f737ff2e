"""What is made of a run that is there: `rfft evaluate` (or a config's base model alone) and `rfft export`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from rfft import build
from rfft.config.load import load_config, read_resolved, to_yaml
from rfft.config.schema import MAY_CHANGE, Config
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.evaluation.evaluator import Evaluator, show, show_result
from rfft.evaluation.report import write_report
from rfft.generation.export import export_bundle
from rfft.generation.model_card import CardMetrics, write_card
from rfft.generation.settings import SETTINGS_FILE, write_settings
from rfft.utils.atomic_io import new_folder, refuse_existing
from rfft.utils.faults import painting
from rfft.utils.log import messages, open_run, write_environment
from rfft.utils.processes import joined, rank


def evaluate(config: Config, run: Path) -> None:
    """Evaluate a run's last checkpoint beside its base model; leaves metrics, pictures, report in the run."""
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        bundle, step = build.load_trained(config, run, device)
        evaluator = Evaluator(config, bundle, build.build_rfnet(config, device))
        for state in ("base", "tuned"):
            _evaluate(evaluator, run, state, console)
        if rank() > 0:
            return
    found = store.finish(run, {"steps": step})
    show_result(console, config, found)
    written = [run / name for name in (store.EVALUATION, store.SUMMARY, store.COMPARISON)]
    written.append(write_report(run))  # or the old one would contradict these metrics
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)


def evaluate_base(config: Config) -> Path:
    """Evaluate a config's base model alone, into its run's folder: a row for `rfft compare`."""
    run = Path(config.run.out) / config.run.name
    if (run / "checkpoints").exists():
        raise UserError(f"{run} is a training run: `rfft evaluate {run}`, or choose another run.name")
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        bundle = build.build_bundle(config, device, trained=False)
        evaluator = Evaluator(config, bundle, build.build_rfnet(config, device))
        if rank() == 0:
            open_run(run, to_yaml(config), MAY_CHANGE)
            write_environment(run)
        _evaluate(evaluator, run, "base", console)
        if rank() > 0:
            return run
    found = store.finish_base(run)
    console.print(store.table(found["base"]))
    written = [run / store.EVALUATION, run / store.SUMMARY, write_report(run)]
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    return run


def _evaluate(evaluator: Evaluator, run: Path, state: str, console: Console) -> None:
    """All processes paint, the first one writes."""
    with Progress(console=console) as progress:
        task = progress.add_task(f"{state} model", total=None)
        found = evaluator(reference=state == "base", report=partial(show, progress, task))
    if rank() == 0:
        evaluator.record(run, state, found)


def export_run(run: Path, format: str, out: Path, best: bool = False) -> Path:
    """Write the weights of a run's last (or best) checkpoint to `out`, with a model card; all or nothing.

    Below RUN/export an earlier export is replaced; anywhere else `out` must be new.
    """
    own = (run / "export").resolve() in out.resolve().parents
    if not own:
        refuse_existing(out)
    config = load_config(run / "config.yaml")
    bundle, step = build.load_trained(config, run, "cpu", best)
    with new_folder(out, replace=own) as draft:
        export_bundle(bundle, format, draft, config.run.name)
        resolved = read_resolved(run / "config.yaml")
        write_settings(draft / SETTINGS_FILE, config, format)
        write_card(draft / "README.md", resolved, format, step, bundle, _card_metrics(run))
    return out


def _card_metrics(run: Path) -> CardMetrics:
    base, tuned = (store.recorded(run, state) for state in store.STATES)
    if not (base and tuned):
        return CardMetrics()
    return CardMetrics(store.rows(base, tuned), base["images"], store.painted(base))
