"""A model state measured on a fixed grid: products x prompts x seeds, always with the same noise.

Shapes: N products and prompts, S seeds, P = N S pictures, K outputs of a network, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from rfft import build
from rfft.config.schema import Config, EvaluateConfig
from rfft.data.references import reference_images
from rfft.data.samples import Entry
from rfft.data.sizes import as_size
from rfft.errors import UserError, require
from rfft.evaluation import summary
from rfft.evaluation.measures import (
    BACKGROUND,
    COLOUR,
    EMBEDDING,
    FEATURES,
    READ,
    SCORE,
    SHOWN,
    Measures,
    Values,
    joined,
    named,
)
from rfft.evaluation.networks import Networks, Verdicts, load_networks
from rfft.evaluation.painter import Painted, Painter, Report
from rfft.evaluation.picture_file import PictureFile
from rfft.evaluation.scorers import fid_metrics, score_metrics
from rfft.metrics.features import image_features
from rfft.metrics.library import torchmetrics
from rfft.metrics.verdict import NOT_FINITE, is_accepted, verdicts_of
from rfft.models.bundle import Bundle
from rfft.rewards.availability import RFNetWithMaps

SPECIAL = ("quality_words", "negative_prompt", "only_accepted")


@dataclass
class Evaluation:
    """One model state on the grid."""

    estimates: summary.Estimates  # by metric
    pictures: PictureFile | None  # [N S,...]; in the first process
    probabilities: dict[str, Tensor]  # [N,S,K] by network, see NETWORKS; NaN where not finite
    scores: dict[str, Tensor]  # [N,S] by "clip_score", "pickscore", "product_psnr", "product_ssim", if wanted
    facts: dict[str, Any] = field(default_factory=dict)  # pictures, those not finite, how they were painted

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics as summary.json has them: value, low and high."""
        return summary.as_json(self.estimates)

    @property
    def images(self) -> Tensor:
        """All pictures, uint8 [N,S,3,H,W], from the disk."""
        assert self.pictures is not None
        shape = next(iter(self.probabilities.values())).shape[:2]
        return self.pictures.all().unflatten(0, shape)


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
        self.data = build.build_samples(config, "evaluate")
        self.samples = [self.data.entry(i) for i in range(len(self.data))]
        self.products = summary.number_products([sample.product for sample in self.samples])
        self.networks = networks or load_networks(config, rfnet, self.device)
        source = build.reference_source(config)
        require(
            settings.fid == "none" or source is not None,
            "evaluate.fid compares with held-out pictures: name a folder of them with evaluate.reference",
        )
        probe = self.networks.probe if self.samples[0].attributes else None
        self.space = None if settings.fid == "none" else settings.fid
        self.measures = Measures(self.networks, probe, source is not None, self.space)
        for missing in ("image.fid" if self.space else "", "functional.image" if settings.fidelity else ""):
            if missing:
                torchmetrics(missing)  # not there? Say so before hours of painting.
        self.reference = {} if source is None else self._measure_reference(source)
        conditions = build.build_conditions(config, bundle, self.data, partial(engineered, config))
        verdicts = Verdicts(self.networks)
        self.painter = Painter(config, bundle, conditions, verdicts, self._measure)

    def _measure_reference(self, source: str) -> Values:
        """Return features [M,D] of the held-out pictures, by FEATURES and EMBEDDING."""
        data, parts = self.config.data, []
        for pictures in reference_images(source, as_size(data.image_size), data.max_pixels):
            images = pictures.float() / 255
            found = {FEATURES: image_features(self.networks.features, images)}
            if self.space is not None:
                found[EMBEDDING] = self.measures.embed(images)
            parts.append(found)
        return joined(parts)

    def _measure(self, images: Tensor, product: Tensor, numbers: list[int]) -> Values:
        return self.measures(images, product, [self.samples[i].prompt for i in numbers])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.samples), self.settings.seeds

    @torch.no_grad()
    def __call__(
        self, reference: bool = False, report: Report | None = None, folder: Path | None = None
    ) -> Evaluation:
        """Evaluate the bundle as it is, in all processes together; `reference`: the model before training.

        folder: has room for all pictures while they are painted; None: where temporary files lie. A UserError
        says so where not one picture is finite.
        """
        grid = [(i, seed) for i in range(self.shape[0]) for seed in range(self.shape[1])]
        painted = self.painter.paint_grid(grid, reference, report, folder)
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
        estimates |= self._picture_metrics(painted.values)
        scores = self._group(painted.values, SCORE)
        estimates |= score_metrics(scores, self.products)
        if self.space is not None:
            shown = painted.values[EMBEDDING][painted.values[SHOWN]]
            estimates |= fid_metrics(shown, self.reference[EMBEDDING])
        probabilities = {name: x.softmax(-1).unflatten(0, self.shape) for name, x in painted.logits.items()}
        facts = {"images": len(grid), "not_finite": int((~finite).sum())} | self._special()
        facts |= {"fid_space": self.space} if "fid" in estimates else {}
        return Evaluation(estimates, painted.pictures, probabilities, scores, facts)

    def _verdict_metrics(self, painted: Painted) -> summary.Estimates:
        verdicts = {name: verdicts_of(x).unflatten(0, self.shape) for name, x in painted.logits.items()}
        outputs = {name: x.shape[-1] for name, x in painted.logits.items()}
        return summary.verdict_metrics(verdicts, self.products, outputs)

    def _gridded(self, values: Values, name: str, blank: float = torch.nan) -> Tensor:
        """Return what was measured [P,...] as [N,S,...], blank for pictures that are not shown."""
        found = values[name]
        shown = values[SHOWN].reshape(-1, *[1] * (found.dim() - 1))
        return found.where(shown, blank).unflatten(0, self.shape)

    def _group(self, values: Values, group: str, blank: float = torch.nan) -> Values:
        return {name: self._gridded(values, group + name, blank) for name in named(values, group)}

    def _picture_metrics(self, values: Values) -> summary.Estimates:
        """Return what was measured of the pictures themselves; those that are not shown do not count."""
        found: summary.Estimates = {}
        if self.measures.probe is not None:
            chosen = self._group(values, READ, NOT_FINITE)
            asked = [sample.attributes for sample in self.samples]
            classes = self.measures.probe.config.classes
            found |= summary.alignment_metrics(chosen, asked, classes, self.products)
        found |= summary.diversity_metrics(self._gridded(values, BACKGROUND), self.products)
        found |= summary.mean_metrics(COLOUR, self._gridded(values, COLOUR), self.products)
        if self.reference:
            features = self._gridded(values, FEATURES)
            found |= summary.kid_metrics(features, self.products, self.reference[FEATURES])
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
    finite = painted.values[SHOWN].clone()
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


def engineered(config: Config, entry: Entry) -> Entry:
    """Return a sample with the prompts that are painted in an evaluation."""
    settings = config.evaluate
    return replace(
        entry,
        prompt=", ".join(part for part in (entry.prompt, settings.quality_words) if part),
        negative=entry.negative if settings.negative_prompt is None else settings.negative_prompt,
    )
