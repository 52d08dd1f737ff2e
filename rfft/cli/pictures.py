"""Commands that paint pictures and judge them: generate, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import rfft
from rfft.cli.options import Overrides
from rfft.errors import require


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
        Path | None,
        typer.Option(help="All other settings. Default: those beside the exported weights, else tiny."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Recurrent generation: paint each product again with new seeds until RFNet accepts."""
    from rfft.generation.settings import config_for

    settings = config_for(config, model, lora, overrides or [])
    settings.data.products = str(products)
    settings.data.prompts = str(prompts) if prompts else settings.data.prompts
    settings.data.white_to_alpha |= white_to_alpha
    settings.evaluate.max_attempts = max_attempts or settings.evaluate.max_attempts
    settings.run.seed = settings.run.seed if seed is None else seed
    rfft.generate(settings, lora=lora, out=out)


def score(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURES...", help="Finished pictures, files or folders.")
    ],
    out: Annotated[Path, typer.Option(help="New CSV file for the verdicts.")],
    products: Annotated[
        Path | None,
        typer.Option(help="Folder of the RGBA products of the same names, as they lie in the pictures."),
    ] = None,
    rfnet: Annotated[
        str, typer.Option(help="An embedded RFNet, a folder or a hub id: RUN/rfnet.")
    ] = "rf-tiny-rfnet",
    depth: Annotated[
        str | None, typer.Option(help="Network of the depth maps. Default: the one RFNet learned from.")
    ] = None,
    saliency: Annotated[str | None, typer.Option(help="The same for saliency.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures judged at a time.")] = 16,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="What to do about a picture that cannot be used.")
    ] = "stop",
    aesthetic: Annotated[
        str | None,
        typer.Option(
            help="In RFNet's stead: RUN/aesthetic of `rfft aesthetic train`, which needs no products."
        ),
    ] = None,
    at_least: Annotated[float, typer.Option(help="--aesthetic: accepted from this score on, 1 to 5.")] = 4.0,
    keep: Annotated[
        Path | None, typer.Option(help="--aesthetic: new folder for copies of the accepted pictures.")
    ] = None,
) -> None:
    """Ask RFNet for its verdicts on pictures, or an aesthetic network for the scores of people."""
    if aesthetic is not None:
        from rfft.generation.rate import rate_files

        rate_files(pictures, aesthetic, out, at_least, keep, batch_size)
        return
    require(products, "RFNet judges pictures beside their products: name the folder with --products")
    assert products is not None
    from rfft.generation import score as scoring

    scorer = scoring.Scorer(rfnet, depth, saliency)
    scoring.score_files(pictures, products, out, scorer, batch_size, on_error)
