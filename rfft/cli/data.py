"""`rfft data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Labelled feedback: RF1M, AdWorld's scenes, or a model's own pictures.", no_args_is_help=True
)


@app.command("prepare-rf1m")
def prepare_rf1m(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of packages or files, or a zip.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    size: Annotated[
        int | None, typer.Option(min=16, help="Make squares of this side of all pictures.")
    ] = None,
    raw: Annotated[bool, typer.Option(help="Store uint8 arrays: quickest to read; needs --size.")] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples in a shard.")] = 1000,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
    depth: Annotated[str, typer.Option(help="Network for missing depth maps.")] = "rf-tiny-depth",
    saliency: Annotated[str, typer.Option(help="The same for saliency.")] = "rf-tiny-saliency",
    known_maps: Annotated[
        bool, typer.Option("--known-maps/--no-known-maps", help="Keep the maps of SRC, or compute all.")
    ] = True,
) -> None:
    """Make WebDataset shards of a labelled data set; the same command goes on with what was cut off."""
    from rfft.feedback import prepare

    settings = prepare.Settings(size, raw, shard_size, depth, saliency, known_maps)
    prepare.prepare(source, out, settings, workers or os.cpu_count() or 1)


@app.command()
def label(
    generated: Annotated[Path, typer.Argument(metavar="GENERATED", help="What `rfft generate` wrote.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="CSV with name,label; or label.txt.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder in RF1M's form.")],
) -> None:
    """Turn generated pictures and their labels into new feedback."""
    from rfft.feedback.label import label_generated

    for name, count in label_generated(generated, labels, out).items():
        typer.echo(f"{name:24}{count}")


@app.command()
def bench(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="What prepare-rf1m wrote.")],
    size: Annotated[int | None, typer.Option(min=16, help="Read as squares of this side.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: this one.")] = 0,
    seconds: Annotated[float, typer.Option(min=0)] = 10.0,
) -> None:
    """Measure how many samples per second RFNet's training would read, decode and put into batches."""
    from rfft.feedback.bench import bench as measure

    for line in measure(shards, size, workers, seconds).lines(workers):
        typer.echo(line)
