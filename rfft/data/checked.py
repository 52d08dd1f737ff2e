"""What a data set of somebody's own may get wrong, found before anything is trained or written."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from rfft.data.samples import Sample
from rfft.errors import require
from rfft.types import Size, sides

LONGEST_ID = 200  # bytes; file systems take 255, and something is added


class CheckedDataset:
    """A data set whose samples are checked when they are read; they are read one after the other."""

    def __init__(self, dataset: Any, name: str, size: Size) -> None:
        """`name` is for messages; `size` is what canvases must have."""
        self.dataset, self.name, self.size = dataset, name, size
        self.lock = Lock()  # a data set of one's own need not know of threads

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample; raises UserError if it is none, or one that cannot be painted."""
        with self.lock:
            sample = self.dataset[index]
        where = f"{self.name}: sample {index}"
        require(isinstance(sample, Sample), f"{where} is no rfft.data.samples.Sample")
        for field in ("id", "caption", "prompt", "negative", "product"):
            require(isinstance(getattr(sample, field), str), f"{where}: its {field} must be a text")
        require(_fits_file_name(sample.id), f"{where}: its id {sample.id[:80]!r} is not fit for a file name")
        _check_canvas(sample.canvas, self.size, where)
        return sample


def _fits_file_name(name: str) -> bool:
    return (
        name == Path(name).name
        and name.isprintable()
        and not name.startswith(".")
        and 0 < len(name.encode()) <= LONGEST_ID
    )


def _check_canvas(canvas: Tensor, size: Size, where: str) -> None:
    height, width = sides(size)
    require(
        isinstance(canvas, Tensor) and canvas.is_floating_point() and canvas.shape == (4, height, width),
        f"{where}: its canvas must be a float tensor [4, {height}, {width}], as data.image_size says",
    )
    within = bool((canvas >= 0).all() and (canvas <= 1).all())  # NaN is neither
    require(within, f"{where}: its canvas has values that are not within [0, 1]")
    require((canvas[3] > 0.5).any(), f"{where}: its canvas is transparent: no alpha is above one half")
