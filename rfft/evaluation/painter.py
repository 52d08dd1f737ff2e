"""Painting the cells of a grid, with verdicts on what comes of it; the processes of a job share the work.

Shapes: P pictures, N products and prompts, S seeds, K attempts, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.data.encoded import EncodedSamples
from rfft.data.sizes import as_size, of_one_size
from rfft.diffusion.compositing import paste
from rfft.evaluation.measures import LOGITS, SCORE, Values, joined, named
from rfft.evaluation.networks import Verdicts
from rfft.evaluation.picture_file import PictureFile
from rfft.generation.sample import Outcome, autocast, improves, paint_bare, recur
from rfft.metrics.fidelity import product_fidelity
from rfft.metrics.verdict import is_accepted
from rfft.models.bundle import Bundle
from rfft.types import Batch, sides, size_of
from rfft.utils.contact_sheet import in_middle, to_bytes
from rfft.utils.processes import count, rank, spread

NOISE_SEED = 24080418  # seed s of the grid is NOISE_SEED + s: no run trains on this noise
FIDELITY = (f"{SCORE}product_psnr", f"{SCORE}product_ssim")

Cells = list[tuple[int, int]]  # (sample, attempt)
# Takes pictures done and pictures in all; called in all processes, may end the evaluation by raising.
Report = Callable[[int, int], object]
Measure = Callable[[Tensor, Tensor, list[int]], Values]  # pictures, products, samples
Keep = Callable[[int, Tensor], object]


def _forget(place: int, picture: Tensor) -> None:
    """Keep no picture."""


@dataclass
class Painted:
    """What was measured of the pictures of P cells, and the pictures themselves in the first process."""

    values: Values  # [P,...], see measures.py
    pictures: PictureFile | None

    @property
    def logits(self) -> Values:
        """Each network's logits [P,K]."""
        return named(self.values, LOGITS)

    def keep(self, kept: list[int], new: Values, chosen: list[int]) -> None:
        """Put the chosen ones of the new pictures' values in place of the kept ones of these."""
        for name, values in new.items():
            self.values[name][kept] = values[chosen]


class Painter:
    """Paints cells of one grid with a bundle as it is."""

    def __init__(
        self, config: Config, bundle: Bundle, conditions: EncodedSamples, verdicts: Verdicts, measure: Measure
    ) -> None:
        """conditions: of the grid's N samples; measure: what is measured of the pictures of some samples."""
        self.config, self.settings, self.bundle = config, config.evaluate, bundle
        self.conditions, self.verdicts, self.measure = conditions, verdicts, measure
        self.cell = _around(conditions)
        bundle.schedule(config.rollout.steps, as_size(config.data.image_size))  # or it is refused

    def paint(
        self,
        cells: Cells,
        reference: bool,
        report: Report | None,
        measures: bool = True,
        keep: Keep = _forget,
    ) -> Values:
        """Paint every cell and return what was measured, [P,...] each, in all processes.

        reference: by the model before training; measures: not only verdicts; keep: is given each picture's
        place among the cells, and the picture uint8 [3,H,W], in the first process.
        """
        # Places of cells, so many at a time whose pictures have one size.
        parts = of_one_size(
            range(len(cells)), lambda place: self.conditions.size(cells[place][0]), self.settings.batch_size
        )

        def cells_of(number: int) -> Cells:
            return [cells[place] for part in parts[number : number + 1] for place in part]

        def paint_part(number: int) -> tuple[Values, Tensor]:
            part = cells_of(number)
            batch = self._batch(part)
            self.conditions.prefetch([_samples(cells_of(number + count()))])
            return self._paint_batch(part, batch, reference, measures)

        def tell(done: int) -> None:
            if report is not None:
                report(sum(map(len, parts[:done])), len(cells))

        def deliver(number: int, pictures: Tensor) -> None:
            for place, picture in zip(parts[number], pictures, strict=True):
                keep(place, picture if self.cell is None else in_middle(picture, *self.cell))

        found = joined(spread(paint_part, len(parts), tell, deliver))
        order = torch.tensor([place for part in parts for place in part]).argsort()
        return {name: values[order] for name, values in found.items()}

    def _paint_batch(
        self, cells: Cells, batch: Batch, reference: bool, measures: bool
    ) -> tuple[Values, Tensor]:
        schedule = self.bundle.schedule(self.config.rollout.steps, size_of(batch.product))
        with autocast(self.bundle.device, self.config.trainer.mixed_precision):
            scale = self.config.rollout.guidance_scale
            bare = paint_bare(self.bundle, batch, schedule, scale, reference)
        image = paste(bare, batch.product)
        values = {LOGITS + name: logits for name, logits in self.verdicts(image, batch).items()}
        if measures:
            values |= self.measure(image, batch.product, _samples(cells))
        if measures and self.settings.fidelity:
            found = product_fidelity(bare.cpu(), image.cpu(), batch.product[:, 3:].cpu())
            values |= dict(zip(FIDELITY, found, strict=True))
        return values, to_bytes(image)

    def _batch(self, cells: Cells) -> Batch:
        """Return the cells' conditions, with noise that depends on nothing but sample and attempt."""
        chosen = self.conditions.index(_samples(cells))
        shape = tuple(chosen.x_o.shape[1:])
        noise = torch.cat([noise_for(NOISE_SEED + attempt, [i], shape) for i, attempt in cells])
        return replace(chosen, noise=noise).to(self.bundle.device)

    def paint_grid(self, grid: Cells, reference: bool, report: Report | None, folder: Path | None) -> Painted:
        """Paint the whole grid; the pictures go to a file in the folder, None: where temporary ones lie."""
        pictures = PictureFile(len(grid), folder) if rank() == 0 else None
        keep = _forget if pictures is None else pictures.write
        return Painted(self.paint(grid, reference, report, keep=keep), pictures)

    def paint_anew(self, painted: Painted, grid: Cells, reference: bool, report: Report | None) -> None:
        """Paint every refused cell of the grid again, each time with new noise: recurrent generation."""
        first = painted.logits["rfnet"].softmax(-1)

        def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
            if attempt == 0:
                return first
            cells = [(grid[i][0], grid[i][1] + attempt * self.settings.seeds) for i in waiting]
            fresh = PictureFile(len(cells)) if painted.pictures is not None else None
            new = self.paint(cells, reference, report, keep=_forget if fresh is None else fresh.write)
            probabilities = new[LOGITS + "rfnet"].softmax(-1)
            better = [j for j, i in enumerate(waiting) if improves(probabilities[j], best[i])]
            painted.keep([waiting[j] for j in better], new, better)
            if fresh is not None and painted.pictures is not None:
                for j in better:
                    painted.pictures.write(waiting[j], fresh.read(j, 1)[0])
            return probabilities

        recur(attempt_all, len(grid), self.settings.max_attempts)

    def attempts(self, accepted: Tensor, reference: bool, report: Report | None) -> Tensor:
        """Return recurrent generation [N,K]: the seeds [N,S] are the first attempts, the refused go on.

        What nobody had to paint counts as refused; it lies behind an accepted attempt.
        """
        count, seeds = accepted.shape
        tried = torch.zeros(count, max(self.settings.max_attempts, seeds), dtype=torch.bool)
        tried[:, :seeds] = accepted
        for attempt in range(seeds, self.settings.max_attempts):
            pending = [i for i in range(count) if not tried[i].any()]
            if not pending:
                break
            found = self.paint([(i, attempt) for i in pending], reference, report, measures=False)
            tried[pending, attempt] = is_accepted(found[LOGITS + "rfnet"])
        return tried[:, : self.settings.max_attempts]


def _around(conditions: EncodedSamples) -> tuple[int, int] | None:
    """Return height and width of a cell that has room for all pictures; None where all have one size."""
    sizes = {size for i in range(len(conditions)) if (size := conditions.size(i)) is not None}
    if len(sizes) < 2:
        return None
    heights, widths = zip(*map(sides, sizes), strict=True)
    return max(heights), max(widths)


def _samples(cells: Cells) -> list[int]:
    return [i for i, _ in cells]
