"""Commands that make runs and look after them: train, check, evaluate, export, report, compare."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated, Literal

import typer

import rfft
from rfft.cli.options import Best, ConfigFile, Overrides, RunFolder, Step
from rfft.utils.agents import agents_overrides, agents_run_name


def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fine-tune a generator (RFFT); the same command again resumes a run that was cut off."""
    settings = rfft.load_config(config, agents_overrides(overrides or []))
    settings.run.name = agents_run_name(settings.run.name)
    rfft.train(settings)


def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config, of `rfft train` or `rfft rfnet train`, and show what it would run, without training."""
    gc.disable()  # a quarter of the time: imports make many objects, and none of them goes before the end
    try:
        from rfft.cli.check import check as print_facts

        print_facts(config, overrides or [])
    finally:
        gc.freeze()  # nor at the end
        gc.enable()


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
    base: Annotated[
        Path | None, typer.Option(help="A folder that has the base model's metrics on this grid already.")
    ] = None,
) -> None:
    """Compare the base model and a run's tuned one on the same products, prompts and seeds."""
    rfft.evaluate(run, overrides or [], best, step, out, base)


def export(
    run: RunFolder,
    format: Annotated[
        Literal["diffusers", "kohya", "peft", "merged"],
        typer.Option(help="For diffusers' load_lora_weights, for ComfyUI, adapters, or a whole pipeline."),
    ] = "diffusers",
    out: Annotated[Path | None, typer.Option(help="Default: RUN/export/FORMAT.")] = None,
    best: Best = False,
    step: Step = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to the Hugging Face hub, too.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
) -> None:
    """Write a run's weights in the form other tools load."""
    folder = rfft.export(run, format, out, best, step)
    typer.echo(folder)
    if push_to_hub:
        from rfft.models.hub import upload

        typer.echo(upload(folder, push_to_hub, private))


def report(run: RunFolder) -> None:
    """Write a run's report.html anew."""
    rfft.config_of(run)
    from rfft.evaluation.report import write_report

    typer.echo(write_report(run))


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
