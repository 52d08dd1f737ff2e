"""A run in TensorBoard: scalars, pictures, settings as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfft.config.load import flatten
from rfft.evaluation.tracked import PictureTable
from rfft.training.lineage import Input

FOLDER = "tensorboard"
# Columns beside the settings in the HParams view; they have to be known before they are measured.
METRICS = ("available_rate_rfnet", "available_rate_judge", "alignment", "diversity", "kid")


class TensorBoardRun:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        """Open a new event file; TensorBoard reads those of a resumed run as one. `config` is resolved."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        writer: Any = SummaryWriter(str(run / FOLDER))
        plain = {name: _plain(value) for name, value in flatten(config).items()}
        for summary in hparams(plain, {f"tuned/{name}": 0.0 for name in METRICS}):
            writer.file_writer.add_summary(summary)
        self._writer = writer

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Log scalars of a step."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def pictures(self, name: str, pictures: NDArray[Any], captions: Sequence[str], step: int) -> None:
        """Log pictures [N,H,W,3]; TensorBoard has no place for captions."""
        self._writer.add_images(name, pictures, step, dataformats="NHWC")

    def table(self, name: str, table: PictureTable, step: int) -> None:
        """Log the pictures in a table, a column at a time; there is no place for the rest."""
        for column, cells in zip(table.columns, zip(*table.rows, strict=True), strict=False):
            if all(hasattr(cell, "shape") for cell in cells):
                self.pictures(f"{name}/{column}", np.stack(cells), (), step)

    def use(self, item: Input) -> None:
        """TensorBoard knows no lineage."""

    def output(self, name: str, folder: Path, metadata: dict[str, Any]) -> None:
        """TensorBoard has no place for weights."""

    def finish(self) -> None:
        """Close the event file."""
        self._writer.close()


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
