"""`rfft rfnet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="RFNet, the network that judges pictures: train it on labelled feedback.", no_args_is_help=True
)


@app.command("train")
def train_rfnet(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file, or a shipped one: rfnet_votes, rfnet_tiny, rfnet_paper, rfnet_embedded.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change: data.train=[scenes].")
    ] = None,
    begin_from: Annotated[
        str | None,
        typer.Option("--from", metavar="RFNET", help="Go on from its weights; short for rfnet.init=RFNET."),
    ] = None,
) -> None:
    """Train RFNet on votes or labelled folders; the same command again resumes a run that was cut off."""
    from rfft.rfnet.config import load_config

    begin = [f"rfnet.init={begin_from}"] if begin_from else []
    settings = load_config(config, [*begin, *(overrides or [])])
    from rfft.rfnet import trainer

    trainer.train(settings)


@app.command("evaluate")
def evaluate_rfnet(
    network: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, an RFNet folder, or rf-tiny-rfnet.")
    ],
    data: Annotated[
        Path, typer.Option(help="Labelled pictures: a folder in RF1M's form, or votes:feedback.db.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the metrics. Default: RUN.")] = None,
    depth: Annotated[str | None, typer.Option(help="Network for missing depth. Default: the run's.")] = None,
    saliency: Annotated[str | None, typer.Option(help="Network for missing saliency.")] = None,
    known_maps: Annotated[
        bool | None, typer.Option(help="Use the maps that come with the data, or make all.")
    ] = None,
    maps_cache: Annotated[
        str | None, typer.Option(help="Folder for made maps. Default: beside the data.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
) -> None:
    """Measure precision, recall, F1 and AP of every class, and the confusion matrix, on labelled pictures."""
    changes = {"depth": depth, "saliency": saliency, "known": known_maps, "cache": maps_cache}
    from rfft.rfnet import evaluate

    given = {name: value for name, value in changes.items() if value is not None}
    evaluate.evaluate(network, data, out, given, batch_size)
