"""The folder that `rfft generate` writes: pictures and products at full size, manifest and contact sheet.

Shapes: S the side of the canvas, N kept pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rfft.data.cutout import paste_back, product_layer
from rfft.data.samples import Sample
from rfft.generation.sample import Outcome
from rfft.metrics.verdict import Verdict
from rfft.utils import contact_sheet
from rfft.utils.processes import broadcast, count

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


class KeptPictures:
    """Keeps this process's pictures: at full size in a folder, small ones for the contact sheet."""

    def __init__(self, folder: Path, samples: list[Sample], max_pixels: int) -> None:
        self.folder, self.samples, self.max_pixels = folder, samples, max_pixels
        self.small: dict[int, tuple[int, Tensor]] = {}  # sample -> attempt, uint8 [3,128,128]

    def keep(self, i: int, image: Tensor, attempt: int) -> None:
        """Write sample i's picture [3,S,S] over that of an earlier attempt; what is NaN becomes black."""
        sample, image = self.samples[i], image.nan_to_num(0.0)
        if attempt == 0:
            contact_sheet.save_png(
                self.folder / f"products/{sample.id}.png", _product(sample, self.max_pixels)
            )
        contact_sheet.save_png(
            self.folder / f"images/{sample.id}.png", full_size(sample, image, self.max_pixels)
        )
        if i < SHEET_COLUMNS * SHEET_ROWS:
            small = F.interpolate(image[None], (THUMBNAIL, THUMBNAIL), mode="area")[0]
            self.small[i] = attempt, contact_sheet.to_bytes(small)

    def thumbnails(self) -> Tensor:
        """Return the small pictures of all processes, uint8 [N,3,128,128]."""
        latest: dict[int, tuple[int, Tensor]] = {}
        for process in range(count()):
            for i, found in broadcast(self.small, source=process).items():
                latest[i] = max(latest.get(i, found), found, key=lambda kept: kept[0])
        return torch.stack([latest[i][1] for i in sorted(latest)])


def write_lists(folder: Path, rows: list[dict[str, Any]], cells: Tensor) -> None:
    """Write the manifest, a JSON object a line, and the contact sheet of cells uint8 [N,3,128,128]."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    verdicts = torch.tensor([row["accepted"] for row in rows[: len(cells)]])
    contact_sheet.save_png(
        folder / SHEET, contact_sheet.sheet(cells, verdicts, min(SHEET_COLUMNS, len(cells)))
    )


def manifest_row(sample: Sample, outcome: Outcome, seed: int) -> dict[str, Any]:
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
