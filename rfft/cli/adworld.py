"""`rfft adworld`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from rfft.errors import require
from rfft.utils.atomic_io import refuse_existing

app = typer.Typer(
    help="The embedded world: labelled scenes, and the models trained on them.", no_args_is_help=True
)


@app.command()
def draw(
    out: Annotated[Path, typer.Argument(help="New folder; with --sheet the PNG file.")],
    count: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option(help="A split, or a source of rfft/adworld/styles.py.")] = "train",
    sheet: Annotated[bool, typer.Option(help="Draw one contact sheet instead, a class per row.")] = False,
) -> None:
    """Draw labelled advertising scenes in RF1M's form."""
    refuse_existing(out, "name a new one")
    from rfft.adworld import draw as drawing
    from rfft.adworld.styles import SOURCES

    require(split in SOURCES, f"--split {split}: AdWorld's scenes are {', '.join(SOURCES)}")

    if sheet:
        drawing.write_sheet(out, seed, split)
    else:
        began = time.monotonic()
        drawing.draw_dataset(out, count, seed, split)
        seconds = time.monotonic() - began
        typer.echo(f"{count} scenes in {seconds:.1f} s, {count / seconds:,.0f} a second: {out}")


@app.command()
def pretrain(
    part: Annotated[
        Literal["vae", "base", "depth", "saliency", "rfnet", "judge", "probe", "all"], typer.Argument()
    ],
    out: Annotated[Path, typer.Option(help="Holds rf-tiny and the other models' folders.")] = Path(
        "pretrained"
    ),
    state: Annotated[Path, typer.Option(help="Where training is saved, to be resumed from.")] = Path(
        "pretrained/state"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Default: STEPS of the part's module.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the data.")] = 0,
    shape: Annotated[
        Literal["sd", "sd3"], typer.Option(help="Of base: U-Net, or sd3, the MM-DiT rf-tiny-flow.")
    ] = "sd",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile (needs g++).")] = False,
) -> None:
    """Train an embedded model on AdWorld, in the order listed; the same command resumes a run.

    `all` trains every one of them, calibrates and measures RFNet and judge, and says what took how long.
    With a new --state and --seed it goes on from the weights in --out. Scenes are kept for the next time in
    ~/.cache/rfft, or in the folder that the variable RFFT_CACHE names.
    """
    require(part == "base" or shape == "sd", f"--shape {shape} is one of base: leave it out for {part}")
    from rfft.rfnet.world import train_all, train_part
    from rfft.training.pretrain.fit import PretrainRun

    run = PretrainRun(out, state, steps or 0, seed, compiled)
    if part == "all":
        train_all(run)
    else:
        train_part(run, "flow" if shape == "sd3" else part)


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="Holds rf-tiny and the other models' folders.")] = Path(
        "pretrained"
    ),
) -> None:
    """Make RFNet and judge as sure as they are right, by temperatures that are chosen on val.

    They are written into the weights.
    """
    from rfft.training.pretrain import calibrate as calibration

    calibration.calibrate(out)


@app.command()
def assess(
    out: Annotated[Path, typer.Option(help="Holds rf-tiny and the other models' folders.")] = Path(
        "pretrained"
    ),
    ablation: Annotated[
        list[Path] | None,
        typer.Option(help="Only these runs of `rfft rfnet train`: their rows of RFNet's ablation.json."),
    ] = None,
    stress: Annotated[
        bool, typer.Option(help="Only stress.json: other styles, JPEG, noise, tiny perturbations.")
    ] = False,
) -> None:
    """Measure RFNet and judge, and how far they agree: on val, for choosing, and on test, for publishing.

    Writes their report.json.
    """
    from rfft.training.pretrain import assess as assessment

    if ablation:
        assessment.assess_ablation(out, ablation)
    elif stress:
        assessment.assess_stress(out)
    else:
        assessment.assess(out)
