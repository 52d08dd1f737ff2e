"""Painting the cells of a grid, with verdicts on what comes of it; the processes of a job share the work.

Shapes: P pictures, N products and prompts, S seeds, K attempts, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.diffusion.compositing import paste
from rfft.evaluation.networks import Verdicts
from rfft.generation.sample import Outcome, autocast, improves, paint_bare, recur
from rfft.metrics.fidelity import product_fidelity
from rfft.metrics.verdict import is_accepted
from rfft.models.bundle import Bundle
from rfft.types import Batch
from rfft.utils.processes import spread

NOISE_SEED = 24080418  # seed s of the grid is NOISE_SEED + s: no run trains on this noise
FIDELITY = ("product_psnr", "product_ssim")

Cells = list[tuple[int, int]]  # (sample, attempt)
# Takes pictures done and pictures in all; called in all processes, may end the evaluation by raising.
Report = Callable[[int, int], object]


@dataclass
class Painted:
    """Pictures on the CPU, and what was said of them."""

    images: Tensor  # [P,3,H,W] in [0,1]
    logits: dict[str, Tensor]  # [P,K] by network
    scores: dict[str, Tensor]  # [P] by name: the product's fidelity, if wanted

    def keep(self, kept: list[int], new: Painted, chosen: list[int]) -> None:
        """Put the chosen ones of the new pictures in place of the kept ones of these."""
        self.images[kept] = new.images[chosen]
        for own, found in ((self.logits, new.logits), (self.scores, new.scores)):
            for name, values in found.items():
                own[name][kept] = values[chosen]


class Painter:
    """Paints cells of one grid with a bundle as it is."""

    def __init__(self, config: Config, bundle: Bundle, conditions: Batch, verdicts: Verdicts) -> None:
        """conditions: of the grid's N samples."""
        self.config, self.settings, self.bundle = config, config.evaluate, bundle
        self.conditions, self.verdicts = conditions, verdicts
        self.schedule = bundle.schedule(config.rollout.steps, config.data.image_size)

    def paint(self, cells: Cells, reference: bool, report: Report | None, fidelity: bool) -> Painted:
        """Paint every cell; `reference`: by the model before training; `fidelity`: measure the product's."""
        size = self.settings.batch_size

        def paint_part(number: int) -> Painted:
            part = cells[number * size : (number + 1) * size]
            return self._paint_batch(self._batch(part), reference, fidelity)

        def tell(parts: int) -> None:
            if report is not None:
                report(min(parts * size, len(cells)), len(cells))

        parts = spread(paint_part, -(-len(cells) // size), tell)
        logits = {name: torch.cat([part.logits[name] for part in parts]) for name in parts[0].logits}
        scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
        return Painted(torch.cat([part.images for part in parts]), logits, scores)

    def _paint_batch(self, batch: Batch, reference: bool, fidelity: bool) -> Painted:
        with autocast(self.bundle.device, self.config.trainer.mixed_precision):
            scale = self.config.rollout.guidance_scale
            bare = paint_bare(self.bundle, batch, self.schedule, scale, reference)
        image = paste(bare, batch.product)
        scores: dict[str, Tensor] = {}
        if fidelity:
            found = product_fidelity(bare.cpu(), image.cpu(), batch.product[:, 3:].cpu())
            scores = dict(zip(FIDELITY, found, strict=True))
        return Painted(image.cpu(), self.verdicts(image, batch), scores)

    def _batch(self, cells: Cells) -> Batch:
        """Return the cells' conditions, with noise that depends on nothing but sample and attempt."""
        shape = tuple(self.conditions.noise.shape[1:])
        noise = torch.cat([noise_for(NOISE_SEED + attempt, [i], shape) for i, attempt in cells])
        return replace(self.conditions.index([i for i, _ in cells]), noise=noise).to(self.bundle.device)

    def paint_anew(self, painted: Painted, grid: Cells, reference: bool, report: Report | None) -> None:
        """Paint every refused cell of the grid again, each time with new noise: recurrent generation."""
        first = painted.logits["rfnet"].softmax(-1)

        def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
            if attempt == 0:
                return first
            cells = [(grid[i][0], grid[i][1] + attempt * self.settings.seeds) for i in waiting]
            new = self.paint(cells, reference, report, self.settings.fidelity)
            probabilities = new.logits["rfnet"].softmax(-1)
            better = [j for j, i in enumerate(waiting) if improves(probabilities[j], best[i])]
            painted.keep([waiting[j] for j in better], new, better)
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
            found = self.paint([(i, attempt) for i in pending], reference, report, fidelity=False)
            tried[pending, attempt] = is_accepted(found.logits["rfnet"])
        return tried[:, : self.settings.max_attempts]
