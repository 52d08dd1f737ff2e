"""The folder that `rfft generate` writes: pictures and products at full size, manifest and contact sheet.

Shapes: S the side of the canvas.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rfft.data.cutout import paste_back, product_layer
from rfft.data.samples import Entry, Sample
from rfft.generation.sample import Outcome
from rfft.metrics.verdict import Verdict
from rfft.utils import contact_sheet

MANIFEST, SHEET = "manifest.jsonl", "contact_sheet.png"
THUMBNAIL, SHEET_COLUMNS, SHEET_ROWS = 128, 8, 12


@dataclass(frozen=True)
class GeneratedImage:
    """A picture that recurrent generation has kept, and what the manifest says of it."""

    id: str
    prompt: str
    caption: str
    seed: int  # of the noise that it was painted from
    attempts: int
    accepted: bool
    probabilities: dict[str, float] | None  # RFNet's, by class; None where picture or verdict is not finite
    path: Path | None  # where it lies; None if it is kept in memory
    pixels: Image.Image | None = field(default=None, repr=False)

    @property
    def image(self) -> Image.Image:
        """The picture itself, read from `path` if it lies there."""
        if self.pixels is not None:
            return self.pixels
        assert self.path is not None
        with Image.open(self.path) as picture:
            return picture.convert("RGB")


@contextmanager
def output_folder(out: str | Path | None) -> Iterator[tuple[Path, bool]]:
    """Give the folder that generation writes, and whether it stays: without `out` it is a temporary one."""
    if out is not None:
        yield Path(out), True
        return
    with TemporaryDirectory() as folder:
        yield Path(folder) / "generated", False


def read_generated(folder: Path, in_memory: bool) -> list[GeneratedImage]:
    """Read what generation has written into a folder; `in_memory`: the pictures too, as it will be gone."""
    found = []
    for line in filter(None, (folder / MANIFEST).read_text(encoding="utf-8").split("\n")):  # not U+2028
        row = json.loads(line)
        path = folder / row["image"]
        named = {name: row[name] for name in ("id", "prompt", "caption", "seed", "attempts", "accepted")}
        image = GeneratedImage(**named, probabilities=row["probabilities"], path=path)
        found.append(replace(image, path=None, pixels=image.image) if in_memory else image)
    return found


def keep_picture(folder: Path, sample: Sample, image: Tensor, first: bool, max_pixels: int) -> None:
    """Write a sample's picture [3,S,S] over that of an earlier attempt; what is NaN becomes black.

    first: no attempt was earlier, so that the product is written, too.
    """
    if first:
        contact_sheet.save_png(folder / f"products/{sample.id}.png", _product(sample, max_pixels))
    picture = full_size(sample, image.nan_to_num(0.0), max_pixels)
    contact_sheet.save_png(folder / f"images/{sample.id}.png", picture)


def write_sheet(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the contact sheet of the pictures of some rows of the manifest."""
    cells = []
    for row in rows:
        picture = Image.fromarray(contact_sheet.read_png(folder / row["image"]))
        small = ImageOps.pad(picture, (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, contact_sheet.PAPER)
        cells.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    verdicts = torch.tensor([row["accepted"] for row in rows])
    columns = min(SHEET_COLUMNS, len(cells))
    contact_sheet.save_png(folder / SHEET, contact_sheet.sheet(torch.stack(cells), verdicts, columns))


def manifest_row(sample: Entry, outcome: Outcome, seed: int) -> dict[str, Any]:
    """Return what the manifest says of a sample's picture; `seed` is that of the first attempt."""
    verdict = Verdict.of(outcome.probabilities)
    row = {
        "id": sample.id,
        "image": f"images/{sample.id}.png",
        "product": f"products/{sample.id}.png",
        "caption": sample.caption,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative,
        "seed": seed + outcome.attempt,
        "attempts": outcome.attempts,
        "accepted": verdict.accepted,
        "probabilities": {label: round(p, 4) for label, p in verdict.probabilities.items()},
    }
    return row if verdict.is_finite else row | {"probabilities": None, "not_finite": True}


def full_size(sample: Sample, image: Tensor, max_pixels: int) -> contact_sheet.Sheet:
    """Bring a picture [3,S,S] to its product's own resolution, with the product's own pixels: uint8 [H,W,3].

    Pictures of AdWorld's products stay as they are.
    """
    if sample.source is None or sample.placement is None:
        return contact_sheet.to_bytes(image).permute(1, 2, 0).numpy()
    return paste_back(image, sample.source, sample.placement, max_pixels)


def _product(sample: Sample, max_pixels: int) -> contact_sheet.Sheet:
    """Return the product as it lies in the full-size picture, RGBA uint8 [H,W,4]."""
    if sample.source is None or sample.placement is None:
        return contact_sheet.to_bytes(sample.canvas).permute(1, 2, 0).numpy()
    return product_layer(sample.source, sample.placement, max_pixels)
