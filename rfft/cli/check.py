"""What a config would run, without running it: `rfft check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rfft import build
from rfft.config.describe import describe_objective
from rfft.config.schema import Config
from rfft.data.overlap import describe_samples, overlap_warnings
from rfft.data.references import reference_images
from rfft.data.samples import Sample, Skipped
from rfft.training.costs import costs
from rfft.utils.log import warn


def describe(config: Config) -> dict[str, str]:
    """Facts by name; a UserError for anything that is missing or broken, by what would read it in a run."""
    evaluate, trainer = config.evaluate, config.trainer
    skipped: list[Skipped] = []
    samples = build.build_samples(config, "train", skipped)
    if config.reward.rfnet is not None:
        build.caption_tokenizer(config.reward.rfnet)
    return {
        "run folder": str(Path(config.run.out) / config.run.name),
        "training": describe_samples(samples, build.trained_products(config)) + _left_out(skipped),
        "evaluation": _evaluation(config, samples) if evaluate.enabled else "none",
        "networks": ", ".join(_networks(config)),
        "bundle": config.model.bundle,
        "objective": describe_objective(asdict(config)),
        "optimizer steps": f"{trainer.steps}, in {trainer.max_minutes or 'any number of'} minutes",
        "images per step and process": f"{trainer.batch_size} x {trainer.accumulation} micro-batches",
        "processes": _processes(config),
        **costs(config),
    }


def _left_out(skipped: list[Skipped]) -> str:
    return f", {len(skipped)} products cannot be used: {skipped[0].reason}" if skipped else ""


def _evaluation(config: Config, trained: list[Sample]) -> str:
    evaluate, source = config.evaluate, build.evaluated_products(config)
    samples = build.build_samples(config, "evaluate")
    for warning in overlap_warnings(build.trained_products(config), trained, source, samples):
        warn(warning)
    if evaluate.judge is not None:
        build.load_tokenizer(evaluate.judge)
    compared = ""
    if evaluate.reference is not None:
        data = config.data
        count = len(reference_images(evaluate.reference, data.image_size, data.max_pixels))
        compared = f", KID to {count} pictures of {evaluate.reference}"
    return f"{describe_samples(samples, source)}, {evaluate.seeds} seeds{compared}"


def _networks(config: Config) -> list[str]:
    """Return the names of all networks that must be there; costs() loads them."""
    reward, evaluate = config.reward, config.evaluate
    named = [] if reward.rfnet is None else [reward.rfnet, reward.depth, reward.saliency]
    if evaluate.enabled:
        named += filter(None, [evaluate.judge, evaluate.probe, evaluate.clip, evaluate.pickscore])
    return named


def _processes(config: Config) -> str:
    """Say how many processes may share a run.

    A draw's micro-batches come from all processes, from each equally many.
    """
    shared, accumulation = config.rollout.shared_draw, config.trainer.accumulation
    if shared is None:
        return "any number"
    each = [n for n in range(accumulation, 0, -1) if accumulation % n == 0 and shared % n == 0]
    return f"{' or '.join(str(shared // n) for n in each)}, because of rollout.shared_draw={shared}"
