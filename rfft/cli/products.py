"""`rfft products`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = "Product photos."
app = typer.Typer(help=HELP, no_args_is_help=True)


@app.command()
def cutout(
    photos: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos: JPEG, PNG, WebP, TIFF.")],
    out: Annotated[Path, typer.Option(help="New folder; `rfft generate --products` takes it.")],
    threshold: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Saliency of the cut; more cuts closer to the product.")
    ] = 0.5,
    softness: Annotated[float, typer.Option(min=0, max=1, help="Width of the edge's ramp; 0: hard.")] = 0.25,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger photos are refused.")] = 50_000_000,
) -> None:
    """Cut products out of plain photos (U2-Net); exit code 1 if nothing was found in some of them."""
    from rfft.data.matting import Edge
    from rfft.data.photos import cut_out_folder

    if cut_out_folder(photos, out, Edge(threshold, softness), max_pixels):
        raise typer.Exit(1)
