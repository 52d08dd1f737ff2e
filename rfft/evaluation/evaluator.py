"""A model state measured on a fixed grid: products x prompts x seeds, always with the same noise.

Shapes: N products and prompts, S seeds, P = N S pictures, K outputs of a network, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from rfft import build
from rfft.config.schema import Config, EvaluateConfig
from rfft.data.references import reference_images
from rfft.errors import UserError, require
from rfft.evaluation import summary
from rfft.evaluation.networks import Networks, Verdicts, in_batches, load_networks
from rfft.evaluation.painter import Painted, Painter, Report
from rfft.evaluation.scorers import Scorers, score_metrics
from rfft.metrics.colour import colourfulness
from rfft.metrics.features import fill_product, image_features
from rfft.metrics.library import torchmetrics
from rfft.metrics.verdict import NOT_FINITE, is_accepted, verdicts_of
from rfft.models.bundle import Bundle
from rfft.rewards.availability import RFNetWithMaps
from rfft.utils.contact_sheet import to_bytes

SPECIAL = ("quality_words", "negative_prompt", "only_accepted")


@dataclass
class Evaluation:
    """One model state on the grid."""

    estimates: summary.Estimates  # by metric
    images: Tensor  # uint8 [N,S,3,H,W]
    probabilities: dict[str, Tensor]  # [N,S,K] by network, "rfnet" and "judge"; NaN where not finite
    scores: dict[str, Tensor]  # [N,S] by "clip_score", "pickscore", "product_psnr", "product_ssim", if wanted
    facts: dict[str, Any] = field(default_factory=dict)  # pictures, those not finite, how they were painted

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics as summary.json has them: value, low and high."""
        return summary.as_json(self.estimates)


class Evaluator:
    """The grid and the networks that measure it; make it once, call it for each state of the bundle."""

    def __init__(
        self, config: Config, bundle: Bundle, rfnet: RFNetWithMaps | None, networks: Networks | None = None
    ) -> None:
        """Build config.evaluate's grid; `networks`: of another evaluator, with the same RFNet."""
        self.config, self.settings, self.device = config, config.evaluate, bundle.device
        settings = self.settings
        require(
            rfnet is not None or not settings.only_accepted,
            "evaluate.only_accepted asks for RFNet's verdict: name a reward.rfnet, or set it to false",
        )
        self.samples = build.build_samples(config, "evaluate")
        self.products = summary.number_products([sample.product for sample in self.samples])
        conditions = build.build_conditions(config, bundle, build.engineered(config, self.samples))
        self.canvases = conditions.product
        self.networks = networks or load_networks(config, rfnet, self.device)
        self.painter = Painter(config, bundle, conditions, Verdicts(self.networks))
        self.probe = self.networks.probe if self.samples[0].attributes else None
        held_out = self._held_out()
        require(
            settings.fid == "none" or held_out is not None,
            "evaluate.fid compares with held-out pictures: name a folder of them with evaluate.reference",
        )
        features = self.networks.features
        self.reference = None if held_out is None else image_features(features, held_out)
        space = None if settings.fid == "none" else settings.fid
        self.scorers = Scorers(self.networks.scorers, space, features, held_out, settings.batch_size)
        if settings.fidelity:
            torchmetrics("functional.image")  # missing? Say so before painting.

    def _held_out(self) -> Tensor | None:
        source, data = build.reference_source(self.config), self.config.data
        if source is None:
            return None
        return reference_images(source, data.image_size, data.max_pixels).float() / 255

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.samples), self.settings.seeds

    @torch.no_grad()
    def __call__(self, reference: bool = False, report: Report | None = None) -> Evaluation:
        """Evaluate the bundle as it is, in all processes together; `reference`: the model before training.

        A UserError says so where not one picture is finite.
        """
        grid = [(i, seed) for i in range(self.shape[0]) for seed in range(self.shape[1])]
        painted = self.painter.paint(grid, reference, report, self.settings.fidelity)
        accepted: Tensor | None = None
        if "rfnet" in painted.logits:
            accepted = is_accepted(painted.logits["rfnet"]).unflatten(0, self.shape)
        if self.settings.only_accepted:
            self.painter.paint_anew(painted, grid, reference, report)
        finite = finite_pictures(painted, "base" if reference else "tuned")
        estimates = self._verdict_metrics(painted)
        if accepted is not None:
            tried = self.painter.attempts(accepted, reference, report)
            estimates |= summary.attempt_metrics(tried, self.products)
        shown = painted.images.isfinite().flatten(1).all(1)
        images = painted.images.nan_to_num(0, 0, 0)
        estimates |= self._picture_metrics(images, shown)
        prompts = [self.samples[i].prompt for i, _ in grid]
        scores = painted.scores | self.scorers.scores(images, prompts)
        scores = {name: s.where(shown, torch.nan).unflatten(0, self.shape) for name, s in scores.items()}
        estimates |= score_metrics(scores, self.products) | self.scorers.fid_metrics(images[shown])
        probabilities = {name: x.softmax(-1).unflatten(0, self.shape) for name, x in painted.logits.items()}
        facts = {"images": len(grid), "not_finite": int((~finite).sum())} | self._special()
        facts |= {"fid_space": self.scorers.space} if "fid" in estimates else {}
        return Evaluation(estimates, to_bytes(images).unflatten(0, self.shape), probabilities, scores, facts)

    def _verdict_metrics(self, painted: Painted) -> summary.Estimates:
        verdicts = {name: verdicts_of(x).unflatten(0, self.shape) for name, x in painted.logits.items()}
        outputs = {name: x.shape[-1] for name, x in painted.logits.items()}
        return summary.verdict_metrics(verdicts, self.products, outputs)

    def _picture_metrics(self, images: Tensor, shown: Tensor) -> summary.Estimates:
        """Measure pictures [P,3,H,W] themselves; those that are not `shown` [P] do not count."""

        def gridded(values: Tensor) -> Tensor:
            blank = shown.reshape(-1, *[1] * (values.dim() - 1))
            return values.where(blank, torch.nan).unflatten(0, self.shape)

        canvases = self.canvases.repeat_interleave(self.shape[1], dim=0)
        alpha, features = canvases[:, 3:], self.networks.features
        found: summary.Estimates = {}
        if self.probe is not None:
            read = in_batches(self.probe, images, canvases, self.settings.batch_size, self.device)
            chosen = {
                name: logits.argmax(-1).where(shown, NOT_FINITE).unflatten(0, self.shape)
                for name, logits in read.items()
            }
            asked = [sample.attributes for sample in self.samples]
            found |= summary.alignment_metrics(chosen, asked, self.probe.config.classes, self.products)
        backgrounds = gridded(image_features(features, fill_product(images, alpha)))
        found |= summary.diversity_metrics(backgrounds, self.products)
        found |= summary.mean_metrics("colourfulness", gridded(colourfulness(images, alpha)), self.products)
        if self.reference is not None:
            found |= summary.kid_metrics(
                gridded(image_features(features, images)), self.products, self.reference
            )
        return found

    def _special(self) -> dict[str, Any]:
        """Return the settings by which what is painted differs from a model's plain first pictures."""
        plain = EvaluateConfig()
        found = {name: getattr(self.settings, name) for name in SPECIAL}
        special = {name: value for name, value in found.items() if value != getattr(plain, name)}
        return special | {"max_attempts": self.settings.max_attempts}

    def cells(self) -> list[dict[str, Any]]:
        """Return what each picture of the grid is asked to be."""
        return [
            {
                "id": sample.id,
                "product": sample.product,
                "prompt": sample.prompt,
                "caption": sample.caption,
                "seed": seed,
            }
            for sample in self.samples
            for seed in range(self.settings.seeds)
        ]


def finite_pictures(painted: Painted, state: str) -> Tensor:
    """Return which pictures [P] are finite, with all verdicts on them; a UserError if none is."""
    finite = painted.images.isfinite().flatten(1).all(1)
    for logits in painted.logits.values():
        finite &= logits.isfinite().all(1)
    if not finite.any():
        raise UserError(
            f"none of the {len(finite)} pictures of the {state} model, or no verdict on them, is finite: "
            "check its weights, rollout.guidance_scale, trainer.mixed_precision and model.dtype"
        )
    return finite


def show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    """Move a progress bar on."""
    progress.update(task, completed=done, total=total)
