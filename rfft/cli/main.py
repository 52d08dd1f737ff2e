"""The command line: parse, load the config, call. Imports stay inside the commands, so that help is quick."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rfft import __version__
from rfft.cli import adworld, data, products, rfnet, sweep
from rfft.cli.output import list_facts
from rfft.errors import Interrupted, ProcessLost, UserError, disk_problem
from rfft.utils.agents import agents_overrides, agents_run_name

if TYPE_CHECKING:
    from rfft.config.schema import Config

app = typer.Typer(
    help="Fine-tune advertising-image generators on human feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(adworld.app, name="adworld")
app.add_typer(data.app, name="data")
app.add_typer(products.app, name="products")
app.add_typer(rfnet.app, name="rfnet")

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped one: tiny.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change: trainer.steps=50.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run: runs/tiny.")]

Best = Annotated[
    bool, typer.Option("--best", help="The best checkpoint on the way, not what the run exported.")
]
Step = Annotated[int | None, typer.Option(min=1, help="The checkpoint of this step.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rfft {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fine-tune a generator (RFFT); the same command again resumes a run that was cut off."""
    settings = _load(config, agents_overrides(overrides or []))
    settings.run.name = agents_run_name(settings.run.name)
    from rfft.training import trainer

    trainer.train(settings)


@app.command()
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config, of `rfft train` or `rfft rfnet train`, and show what it would run, without training."""
    from rfft.config.load import is_rfnet

    gc.disable()  # a sixth of the time: imports make many objects, and none of them goes before the end
    try:
        facts = (_facts_of_rfnet if is_rfnet(config) else _facts)(config, overrides)
    finally:
        gc.enable()
    for line in list_facts(facts):
        typer.echo(line)


@app.command()
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, or a config: its base model alone.")
    ],
    overrides: Overrides = None,
    best: Best = False,
    step: Step = None,
    out: Annotated[
        Path | None, typer.Option(help="Where it goes. Default: the run's folder, if this is its grid.")
    ] = None,
) -> None:
    """Compare the base model and a run's tuned one on the same products, prompts and seeds."""
    settings = _load(_config_of(run) if run.is_dir() else run, overrides)
    from rfft.evaluation import runs

    if run.is_dir():
        runs.evaluate(settings, run, best, step, out)
    elif best or step is not None:
        raise UserError(
            f"{run} is a config, whose base model has no checkpoints: --best and --step are for runs"
        )
    else:
        runs.evaluate_base(settings, out)


@app.command()
def generate(
    products: Annotated[Path, typer.Option(help="Folder of RGBA pictures, or a JSON-lines manifest.")],
    out: Annotated[Path, typer.Option(help="New folder for the pictures and their manifest.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompt file; else the manifest's prompts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Bundle: rf-tiny, a folder or a hub id. Default: the config's.")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(help="What `rfft export` wrote: RUN/export/diffusers, or kohya's.")
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(min=1, help="Seeds tried per product. Default: evaluate.max_attempts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first attempt. Default: run.seed.")] = None,
    white_to_alpha: Annotated[bool, typer.Option(help="Pictures without alpha: white is cut away.")] = False,
    config: Annotated[
        Path, typer.Option(help="All other settings: that of the run, for a base of your own.")
    ] = Path("tiny"),
    overrides: Overrides = None,
) -> None:
    """Recurrent generation: paint each product again with new seeds until RFNet accepts."""
    settings = _load(config, overrides)
    settings.data.products = str(products)
    settings.data.prompts = str(prompts) if prompts else settings.data.prompts
    settings.data.white_to_alpha |= white_to_alpha
    settings.model.bundle = model or settings.model.bundle
    settings.evaluate.max_attempts = max_attempts or settings.evaluate.max_attempts
    settings.run.seed = settings.run.seed if seed is None else seed
    from rfft.generation import recurrent

    recurrent.generate(settings, lora, out)


@app.command()
def export(
    run: RunFolder,
    format: Annotated[
        Literal["diffusers", "kohya", "peft", "merged"],
        typer.Option(help="For diffusers' load_lora_weights, for ComfyUI, adapters, or a whole pipeline."),
    ] = "diffusers",
    out: Annotated[Path | None, typer.Option(help="Default: RUN/export/FORMAT.")] = None,
    best: Best = False,
    step: Step = None,
) -> None:
    """Write a run's weights in the form other tools load."""
    _config_of(run)
    from rfft.evaluation.runs import export_run

    typer.echo(export_run(run, format, out, best, step))


@app.command()
def report(run: RunFolder) -> None:
    """Write a run's report.html anew."""
    _config_of(run)
    from rfft.evaluation.report import write_report

    typer.echo(write_report(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.md and comparison.png.")],
    tie: Annotated[
        float, typer.Option(min=0, max=1, help="PickScore's two probabilities closer than this: a tie.")
    ] = 0.05,
) -> None:
    """Put finished runs side by side: a table, and a figure of what each gained and paid."""
    from rfft.evaluation import compare as comparison

    typer.echo(comparison.compare(runs, out, tie))


app.command()(sweep.sweep)


def _load(path: Path, overrides: list[str] | None) -> Config:
    from rfft.config.load import load_config

    return load_config(path, overrides or [])


def _facts(path: Path, overrides: list[str] | None) -> dict[str, str]:
    settings = _load(path, overrides)
    from rfft.cli.check import describe

    return describe(settings)


def _facts_of_rfnet(path: Path, overrides: list[str] | None) -> dict[str, str]:
    from rfft.rfnet.check import describe
    from rfft.rfnet.config import load_config

    return describe(load_config(path, overrides or []))


def _config_of(run: Path) -> Path:
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: no config.yaml here, so no run; run folders are made by `rfft train`")
    return file


def _hush_libraries() -> None:
    """Silence libraries' notes on optional packages and coming releases; their errors show."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)


def main() -> None:
    """Run a command; a mistake of the user's ends it with one line and exit code 2."""
    _hush_libraries()
    try:
        app()
    except UserError as error:
        typer.echo("rfft: " + str(error).replace("\n", " "), err=True)
        sys.exit(2)
    except Interrupted as stop:
        typer.echo(f"rfft: {stop}", err=True)
        sys.exit(75)
    except ProcessLost as loss:
        typer.echo(f"rfft: {loss}", err=True)
        sys.exit(76)
    except Exception as error:
        if not (problem := _explain(error)):
            raise
        typer.echo(f"rfft: {problem}", err=True)
        sys.exit(2)


def _explain(error: Exception) -> str | None:
    """Return one line for what the machine lacks, disk or memory; None for a mistake of the program's."""
    if problem := disk_problem(error):
        return problem
    if not isinstance(error, (MemoryError, RuntimeError)):
        return None
    from rfft.utils.faults import memory_problem

    problem = memory_problem(error)
    return problem and f"{problem}. Try fewer or smaller pictures at a time"
