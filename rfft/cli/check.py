"""What a config would run, without running it: `rfft check`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import typer

from rfft import build
from rfft.cli.output import list_facts
from rfft.config.describe import describe_objective
from rfft.config.load import is_rfnet, load_config
from rfft.config.schema import Config
from rfft.data.dataset import Samples
from rfft.data.overlap import describe_samples, overlap_warnings
from rfft.data.references import reference_images
from rfft.data.samples import Skipped
from rfft.data.sizes import as_size
from rfft.data.store import find_store
from rfft.evaluation.validation import validation_config
from rfft.rfnet.check import describe as describe_rfnet
from rfft.rfnet.config import load_config as load_rfnet_config
from rfft.training.costs import costs
from rfft.utils.log import warn
from rfft.utils.machine import process_memory

MOST_PROCESSES = 1024


def check(path: Path, overrides: list[str]) -> None:
    """Print what a config of either training would run; raises UserError for what training would refuse."""
    if is_rfnet(path):
        _print(describe_rfnet(load_rfnet_config(path, overrides)))
        return
    config, warnings = load_config(path, overrides), list[str]()
    _print(describe(config, warnings))
    _print(_costs(config, warnings))  # takes seconds: what is known is read meanwhile
    for warning in warnings:
        warn(warning)


def _print(facts: Mapping[str, str]) -> None:
    for line in list_facts(facts, least_indent=35):
        typer.echo(line)


def _costs(config: Config, warnings: list[str]) -> dict[str, str]:
    """Return what the run costs, and add a warning if this machine has too little memory for it."""
    found, (place, size) = costs(config), process_memory()
    needed, there = (f"{amount / 2**30:,.1f} GiB" for amount in (max(found.together, found.start), size))
    if max(found.together, found.start) > size:
        warnings.append(
            f"this does not fit: a process needs {needed} at least, and here are {there} of {place}. Set "
            "trainer.decode_batch=1 or model.gradient_checkpointing=true, lower trainer.batch_size, or run "
            "it on a larger machine"
        )
    memory = {f"memory: {name}": value for name, value in found.memory().items()}
    return found.facts | memory | {"memory: of this machine": f"{there} of {place}"}


def describe(config: Config, warnings: list[str]) -> dict[str, str]:
    """Return facts by name, and add to the warnings.

    What is missing or broken raises the UserError of whatever reads it in a run.
    """
    evaluate, trainer = config.evaluate, config.trainer
    skipped: list[Skipped] = []
    samples = build.build_samples(config, "train", skipped)
    if config.reward.rfnet is not None:
        build.caption_tokenizer(config.reward.rfnet)
    facts = {
        "run folder": str(Path(config.run.out) / config.run.name),
        "training": describe_samples(samples, build.trained_products(config)) + _left_out(skipped),
        "data": _reading(config, samples),
        "evaluation": _evaluation(config, samples, warnings) if evaluate.enabled else "none",
        "validation": _validation(config) if evaluate.enabled and evaluate.every else "",
        "networks": ", ".join(_networks(config)),
        "bundle": config.model.bundle,
        "objective": describe_objective(asdict(config)),
        "optimizer steps": f"{trainer.steps}, in {trainer.max_minutes or 'any number of'} minutes",
        "images per step and process": f"{trainer.batch_size} x {trainer.accumulation} micro-batches",
        "processes": _processes(config),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _reading(config: Config, samples: Samples) -> str:
    """Say when products are read, and where what is made of them is kept."""
    store, data = find_store(config.data.cache, config.data.cache_gb), config.data
    if store is None:
        return "products are encoded whenever they are needed: data.cache is null"
    used = f"{store.used() / 1e9:,.1f} of {data.cache_gb:g} GB used"
    told = f"products are encoded when first needed and kept in {store.folder} ({used})"
    return told if samples.in_memory else f"{told}; read by {data.workers} threads"


def _left_out(skipped: list[Skipped]) -> str:
    return f", {len(skipped)} products cannot be used: {skipped[0].reason}" if skipped else ""


def _evaluation(config: Config, trained: Samples, warnings: list[str]) -> str:
    evaluate, source = config.evaluate, build.evaluated_products(config)
    samples = build.build_samples(config, "evaluate")
    warnings += overlap_warnings(build.trained_products(config), trained, source, samples)
    if evaluate.judge is not None:
        build.load_tokenizer(evaluate.judge)
    compared = ""
    if (reference := build.reference_source(config)) is not None:
        data = config.data
        count = sum(map(len, reference_images(reference, as_size(data.image_size), data.max_pixels)))
        compared = f", KID to {count} pictures of {reference}"
    return f"{describe_samples(samples, source)}, {evaluate.seeds} seeds{compared}"


def _validation(config: Config) -> str:
    changed = validation_config(config)
    samples, source = build.build_samples(changed, "evaluate"), build.validated_products(config)
    every = f"every {config.evaluate.every} steps"
    return f"{describe_samples(samples, source)}, {changed.evaluate.seeds} seeds, {every}"


def _networks(config: Config) -> list[str]:
    """Return the names of all networks that must be there; costs() loads them."""
    reward, evaluate = config.reward, config.evaluate
    named = [] if reward.rfnet is None else [reward.rfnet, reward.depth, reward.saliency]
    if evaluate.enabled:
        scorers = evaluate.clip, evaluate.pickscore, evaluate.aesthetic
        named += filter(None, [evaluate.judge, evaluate.monitor, evaluate.probe, *scorers])
    return named


def _processes(config: Config) -> str:
    """Say how many processes may share a run.

    A draw's micro-batches come from all processes, from each equally many.
    """
    shared, accumulation = config.rollout.shared_draw, config.trainer.accumulation
    if shared is None:
        return "any number"
    fitting = [
        n for n in range(1, MOST_PROCESSES + 1) if shared % n == 0 and accumulation % (shared // n) == 0
    ]
    fewest = shared // math.gcd(shared, accumulation)
    told = " or ".join(map(str, fitting)) or f"{fewest:,} at least"
    return f"{told}, because of rollout.shared_draw={shared}"
