"""Model states compared on a fixed grid: products x prompts x seeds, always with the same noise.

Shapes: N products and prompts, S seeds, K attempts, D features, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from rfft import build
from rfft.adworld import draw
from rfft.config.schema import Config, EvaluateConfig
from rfft.data.conditions import noise_for
from rfft.data.cutout import read_square
from rfft.data.products import SUFFIXES
from rfft.data.samples import ADWORLD, Sample, adworld_split
from rfft.diffusion.compositing import paste
from rfft.errors import UserError
from rfft.evaluation import store, summary
from rfft.evaluation.scorers import Scorers, score_metrics
from rfft.generation.sample import Outcome, autocast, improves, paint_bare, recur, reward_logits
from rfft.metrics.colour import colourfulness
from rfft.metrics.features import fill_product, image_features, load_efficientnet_lite0
from rfft.metrics.fidelity import product_fidelity
from rfft.metrics.library import torchmetrics
from rfft.metrics.verdict import is_accepted, verdict_classes
from rfft.models.bundle import Bundle
from rfft.rewards.availability import RFNetWithMaps
from rfft.rewards.judge import Judge
from rfft.rewards.probe import Probe
from rfft.types import Batch
from rfft.utils.contact_sheet import to_bytes
from rfft.utils.processes import spread

NOISE_SEED = 24080418  # seed s of the grid is NOISE_SEED + s: no run trains on this noise
REFERENCE_SEED, REFERENCE_IMAGES = 418, 128
FEWEST = 4  # pictures that KID needs
FIDELITY = ("product_psnr", "product_ssim")
SPECIAL = ("quality_words", "negative_prompt", "only_accepted")

Cells = list[tuple[int, int]]  # (sample, attempt)
Painted = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]  # pictures, logits by network, scores by name
# Of pictures done and pictures in all; called in all processes, may end the evaluation by raising.
Report = Callable[[int, int], object]


@dataclass
class Evaluation:
    """One model state on the grid."""

    metrics: dict[str, Any]
    images: Tensor  # uint8 [N,S,3,H,W]
    probabilities: dict[str, Tensor]  # [N,S,5] by "rfnet" and, if there is one, "judge"
    scores: dict[str, Tensor]  # [N,S] by "clip_score", "pickscore", "product_psnr", "product_ssim", if wanted


class Evaluator:
    """The grid and the networks that judge it; make it once, call it for each state of the bundle."""

    def __init__(self, config: Config, bundle: Bundle, rfnet: RFNetWithMaps | None) -> None:
        self.config, self.settings = config, config.evaluate
        self.bundle, self.rfnet, self.device = bundle, rfnet, bundle.device
        self.samples: list[Sample] = build.build_samples(config, "evaluate")
        self.batch: Batch = build.build_conditions(config, bundle, build.engineered(config, self.samples))
        self.schedule = bundle.schedule(config.rollout.steps)
        settings = self.settings
        self.judge = self._network(Judge, settings.judge)
        self.judge_captions = self._captions(settings.judge)  # its tokens are not RFNet's
        self.probe = self._network(Probe, settings.probe) if self.samples[0].attributes else None
        # channels_last: 40 % less time on a CPU, the same numbers
        self.features = load_efficientnet_lite0().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        held_out = self._held_out(settings.reference)
        self.reference = None if held_out is None else image_features(self.features, held_out)
        scorers = build.build_scorers(config, self.device)
        space = None if settings.fid == "none" else settings.fid
        self.looks = Scorers(scorers, space, self.features, held_out, settings.batch_size)
        if settings.fidelity:
            torchmetrics("functional.image")  # missing? Say so before painting.

    def _network(self, kind: Any, name: str | None) -> Any:
        if name is None:
            return None
        return kind.from_pretrained(name).requires_grad_(False).to(self.device)

    def _captions(self, network: str | None) -> tuple[Tensor, Tensor]:
        """Ids and mask [N,L] of the samples' captions, by the network's own tokenizer."""
        if network is None:
            return torch.empty(0), torch.empty(0)
        tokenizer, captions = build.load_tokenizer(network), [sample.caption for sample in self.samples]
        found = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return found.input_ids, found.attention_mask

    def _held_out(self, source: str | None) -> Tensor | None:
        data = self.config.data
        if source is None:
            return None
        return reference_images(source, data.image_size, data.max_pixels).float() / 255

    @torch.no_grad()
    def __call__(self, reference: bool = False, report: Report | None = None) -> Evaluation:
        """Evaluate the bundle as it is, in all processes together; `reference`: the model before training."""
        count, seeds = len(self.samples), self.settings.seeds
        grid = [(i, seed) for i in range(count) for seed in range(seeds)]
        painted = images, logits, scores = self._paint(grid, reference, report, self.settings.fidelity)
        accepted = is_accepted(logits["rfnet"]).unflatten(0, (count, seeds))
        if self.settings.only_accepted:
            self._paint_anew(painted, grid, reference, report)
        judged = {name: found.unflatten(0, (count, seeds)) for name, found in logits.items()}
        verdicts = {name: verdict_classes(found) for name, found in judged.items()}
        accepted = self._attempts(accepted, reference, report)
        outputs = {name: found.shape[-1] for name, found in judged.items()}
        metrics = {"images": len(grid)} | self._special()
        metrics |= summary.verdict_metrics(verdicts, outputs)
        metrics |= summary.attempt_metrics(accepted)
        metrics |= self._picture_metrics(images)
        scores |= self.looks.scores(images, [self.samples[i].prompt for i, _ in grid])
        scores = {name: found.unflatten(0, (count, seeds)) for name, found in scores.items()}
        metrics |= score_metrics(scores) | self.looks.fid_metrics(images)
        probabilities = {name: found.softmax(-1) for name, found in judged.items()}
        return Evaluation(metrics, to_bytes(images).unflatten(0, (count, seeds)), probabilities, scores)

    def _paint(self, cells: Cells, reference: bool, report: Report | None, fidelity: bool) -> Painted:
        """Pictures [len(cells),3,H,W] on the CPU, every network's logits, the product's fidelity if wanted.

        The processes share it.
        """
        size = self.settings.batch_size

        def paint_part(number: int) -> Painted:
            part = cells[number * size : (number + 1) * size]
            return self._paint_batch(self._batch(part), reference, fidelity)

        def tell(parts: int) -> None:
            if report is not None:
                report(min(parts * size, len(cells)), len(cells))

        pictures, *named = zip(*spread(paint_part, -(-len(cells) // size), tell), strict=True)
        verdicts, scores = (
            {name: torch.cat([p[name] for p in parts]) for name in parts[0]} for parts in named
        )
        return torch.cat(pictures), verdicts, scores

    def _paint_anew(self, painted: Painted, grid: Cells, reference: bool, report: Report | None) -> None:
        """Recurrent generation of every cell: those refused again, each time with new noise."""
        images, *named = painted
        first = named[0]["rfnet"].softmax(-1)

        def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
            if attempt == 0:
                return first
            cells = [(grid[i][0], grid[i][1] + attempt * self.settings.seeds) for i in waiting]
            new_images, *new = self._paint(cells, reference, report, self.settings.fidelity)
            probabilities = new[0]["rfnet"].softmax(-1)
            better = [j for j, i in enumerate(waiting) if improves(probabilities[j], best[i])]
            kept = [waiting[j] for j in better]
            images[kept] = new_images[better]
            for old, found in zip(named, new, strict=True):
                for name, values in found.items():
                    old[name][kept] = values[better]
            return probabilities

        recur(attempt_all, len(grid), self.settings.max_attempts)

    def _paint_batch(self, batch: Batch, reference: bool, fidelity: bool) -> Painted:
        with autocast(self.device, self.config.trainer.mixed_precision):
            scale = self.config.rollout.guidance_scale
            bare = paint_bare(self.bundle, batch, self.schedule, scale, reference)
        image = paste(bare, batch.product)
        scores: dict[str, Tensor] = {}
        if fidelity:
            found = product_fidelity(bare.cpu(), image.cpu(), batch.product[:, 3:].cpu())
            scores = dict(zip(FIDELITY, found, strict=True))
        return image.cpu(), self._judge(image, batch), scores

    def _batch(self, cells: Cells) -> Batch:
        """The cells' conditions, with noise that depends on nothing but sample and attempt."""
        shape = tuple(self.batch.noise.shape[1:])
        noise = torch.cat([noise_for(NOISE_SEED + attempt, [i], shape) for i, attempt in cells])
        return replace(self.batch.index([i for i, _ in cells]), noise=noise).to(self.device)

    def _judge(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert self.rfnet is not None
        rfnet, judge = self.rfnet, self.judge
        logits = {"rfnet": reward_logits(lambda x: rfnet(x, batch), image).cpu()}
        if judge is not None:
            ids, mask = (tensor[batch.sample.cpu()].to(image.device) for tensor in self.judge_captions)
            found = reward_logits(lambda x: judge(x, batch.product, ids, mask), image)
            logits["judge"] = found.cpu()
        return logits

    def _attempts(self, accepted: Tensor, reference: bool, report: Report | None) -> Tensor:
        """Recurrent generation [N,K]: the seeds are the first attempts; the refused go on with new ones.

        What nobody had to paint counts as refused; it lies behind an accepted attempt.
        """
        count, seeds = accepted.shape
        tried = torch.zeros(count, max(self.settings.max_attempts, seeds), dtype=torch.bool)
        tried[:, :seeds] = accepted
        for attempt in range(seeds, self.settings.max_attempts):
            pending = [i for i in range(count) if not tried[i].any()]
            if not pending:
                break
            _, logits, _ = self._paint([(i, attempt) for i in pending], reference, report, fidelity=False)
            tried[pending, attempt] = is_accepted(logits["rfnet"])
        return tried[:, : self.settings.max_attempts]

    def _picture_metrics(self, images: Tensor) -> dict[str, Any]:
        """Metrics of the pictures [N*S,3,H,W] themselves: diversity, colour, alignment, KID."""
        shape = (len(self.samples), self.settings.seeds)
        products = self.batch.product.repeat_interleave(self.settings.seeds, dim=0)
        alpha = products[:, 3:]
        backgrounds = image_features(self.features, fill_product(images, alpha))
        metrics = summary.diversity_metrics(backgrounds.unflatten(0, shape))
        metrics |= summary.mean_metrics("colourfulness", colourfulness(images, alpha).unflatten(0, shape))
        if self.probe is not None:
            found = in_batches(self.probe, images, products, self.settings.batch_size, self.device)
            read = {name: logits.argmax(-1).unflatten(0, shape) for name, logits in found.items()}
            asked = [sample.attributes for sample in self.samples]
            metrics |= summary.alignment_metrics(read, asked, self.probe.config.classes)
        if self.reference is not None and len(images) >= FEWEST:
            features = image_features(self.features, images).unflatten(0, shape)
            metrics |= summary.kid_metrics(features, self.reference)
        return metrics

    def _special(self) -> dict[str, Any]:
        """The settings by which what is painted differs from a model's plain first pictures."""
        plain, found = EvaluateConfig(), {name: getattr(self.settings, name) for name in SPECIAL}
        return {name: value for name, value in found.items() if value != getattr(plain, name)}

    def record(self, run: Path, name: str, evaluation: Evaluation) -> None:
        """Keep a state's metrics and pictures in the run folder, as "base" or "tuned"."""
        special = self._special()
        cells = [
            {"id": sample.id, "prompt": sample.prompt, "caption": sample.caption, "seed": seed} | special
            for sample in self.samples
            for seed in range(self.settings.seeds)
        ]
        probabilities = {key: p.flatten(0, 1).tolist() for key, p in evaluation.probabilities.items()}
        scores = {key: found.flatten().tolist() for key, found in evaluation.scores.items()}
        # Metrics last: where they are, a run that was cut off takes the pictures for granted.
        store.save_pictures(run, name, evaluation.images)
        store.record(run, name, cells, evaluation.metrics, probabilities, scores)


def in_batches(
    network: nn.Module, images: Tensor, products: Tensor, size: int, device: torch.device
) -> dict[str, Tensor]:
    """A network's outputs by name for many pictures, on the CPU."""
    parts = zip(images.split(size), products.split(size), strict=True)
    found = [network(image.to(device), product.to(device)) for image, product in parts]
    return {name: torch.cat([part[name] for part in found]).cpu() for name in found[0]}


def reference_images(source: str, size: int, max_pixels: int) -> Tensor:
    """Held-out available pictures [M,3,size,size], uint8: of AdWorld's split, or of a folder."""
    if source.startswith(ADWORLD):
        split = adworld_split(source)
        scenes = [draw.scene(REFERENCE_SEED, i, split, "available").image for i in range(REFERENCE_IMAGES)]
        return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)
    files = sorted(file for file in Path(source).glob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < FEWEST:
        raise UserError(
            f"evaluate.reference: {source} must be a folder of {FEWEST} pictures at least, or null for no KID"
        )
    return torch.stack([read_square(file, size, max_pixels) for file in files])


def show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def show_result(console: Console, config: Config, found: dict[str, Any]) -> None:
    """The table before/after, and what fell below a guardrail."""
    settings = config.evaluate
    console.print(store.table(found["base"], found["tuned"]))
    lines = (settings.min_alignment, settings.min_diversity)
    for warning in store.guardrails(found["base"], found["tuned"], *lines):
        console.print(f"warning: {warning}", style="red")
