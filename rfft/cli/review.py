"""`rfft review`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from rfft.cli import correlate, label_studio
from rfft.errors import UserError

app = typer.Typer(
    help="People's opinions: a page to ask them, figures, and labels to train on.", no_args_is_help=True
)
for command in (label_studio.push, label_studio.pull, correlate.correlate):
    app.command()(command)
Store = Annotated[Path, typer.Argument(metavar="STORE", help="feedback.db, as `rfft review serve` wrote it.")]


@app.callback()
def needs_extra() -> None:
    missing = [
        name
        for name in ("fastapi", "uvicorn", "krippendorff", "statsmodels", "pyarrow")
        if not find_spec(name)
    ]
    if missing:
        raise UserError(f"{missing[0]} is not installed: pip install 'rfft[review]'")


@app.command()
def serve(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PICTURES|RUN...", help="Folders: of pictures, generated, labelled, or of runs."
        ),
    ],
    store: Annotated[Path, typer.Option(help="Where votes are kept.")] = Path("feedback.db"),
    task: Annotated[
        Literal["labels", "pairs", "gsb", "scores"], typer.Option(help="What people are asked.")
    ] = "labels",
    raters: Annotated[
        str | None, typer.Option(metavar="NAME,NAME...", help="Who may rate: a link with a token for each.")
    ] = None,
    per_picture: Annotated[int, typer.Option(min=1, help="Raters that each picture is given to.")] = 3,
    round_number: Annotated[
        int, typer.Option("--round", min=1, help="From 2 on: what raters, or they and RFNet, disagree on.")
    ] = 1,
    uncertain_first: Annotated[bool, typer.Option(help="Begin with what RFNet is least sure of.")] = False,
    measure_raters: Annotated[
        bool, typer.Option(help="Put hidden repeats and labelled pictures in between.")
    ] = True,
    guide: Annotated[
        Path | None, typer.Option(help="Folder with your own examples: available.png, available.txt, ...")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need --raters.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8642,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name by which browsers ask for the page, too.")
    ] = None,
) -> None:
    """Ask people about pictures, on a page in their browser."""
    from rfft.review import serve as serving
    from rfft.review.queue import Settings

    settings = Settings(task, per_picture, round_number, uncertain_first, measure_raters)
    names = [part.strip() for part in (raters or "").split(",") if part.strip()]
    serving.serve(sources, store, settings, serving.Address(host, port, tuple(name or ())), names, guide)


@app.command()
def report(
    store: Store,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
) -> None:
    """Say how far raters agree: with each other, with what is known, with RFNet."""
    from rfft.feedback.vote_store import VoteStore
    from rfft.review.report import read_figures, to_markdown, write_report

    found = read_figures(VoteStore(store))
    if not found:
        raise UserError(f"{store}: no vote in it yet")
    text = to_markdown(found)
    typer.echo(text)
    if out is not None:
        write_report(out, found, text)


@app.command()
def export(
    store: Store,
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".jsonl or .parquet; for rf1m a new folder.")],
    form: Annotated[
        Literal["votes", "rf1m", "pick-a-pic"], typer.Option(help="One row a vote; labelled pictures; pairs.")
    ] = "votes",
    labels: Annotated[
        Literal["majority", "mean", "votes"], typer.Option(help="rf1m: most votes, their shares, or each.")
    ] = "majority",
) -> None:
    """Write the votes in another form."""
    from rfft.feedback.vote_store import VoteStore
    from rfft.feedback.votes import rows
    from rfft.review import exports

    opened = VoteStore(store)
    votes, pictures = opened.votes(), opened.pictures()
    if form == "rf1m":
        count = exports.to_rf1m(out, labels, votes, pictures)
    elif form == "pick-a-pic":
        count = exports.to_pick_a_pic(out, votes, pictures)
    else:
        count = exports.to_rows(out, rows(opened.votes(undone=True), pictures))
    typer.echo(f"{count} rows: {out}")
