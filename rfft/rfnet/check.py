"""What a config of `rfft rfnet train` would run, without running it: `rfft check`."""

from __future__ import annotations

from pathlib import Path

import torch

from rfft.rewards.rfnet import RFNet
from rfft.rfnet.build import build_tokenizer, network_config
from rfft.rfnet.config import uses_scenes
from rfft.rfnet.data import are_shards, build_maps, open_both, split_records
from rfft.rfnet.schema import RFNetTrainingConfig


def describe(config: RFNetTrainingConfig) -> dict[str, str]:
    """Facts by name; a UserError for anything that is missing or broken. No weights are loaded."""
    tokenizer = build_tokenizer(config.rfnet)
    with torch.device("meta"):
        network = RFNet(network_config(config, tokenizer))
    training, validation, maps = _pictures(config, network.config.image_size)
    trainer = config.trainer
    per_step = trainer.batch_size * trainer.accumulation
    epoch = max(1, training // per_step)
    steps = min(trainer.epochs * epoch, trainer.steps or trainer.epochs * epoch)
    count = sum(parameter.numel() for parameter in network.parameters())
    return {
        "run folder": str(Path(config.run.out) / config.run.name),
        "image encoder": config.rfnet.init or config.rfnet.image_encoder.weights or "random weights",
        "text encoder": config.rfnet.init or config.rfnet.text_encoder.weights or "random weights",
        "trained": f"{count:,} parameters, all of them; {network.config.image_size} px",
        "labels": config.objective.labels,
        "training": f"{training:,} pictures of {', '.join(config.data.train)}",
        "validation": f"{validation:,} pictures of {', '.join(config.data.validation) or 'the same folders'}",
        "maps": maps,
        "images per step and process": f"{trainer.batch_size} x {trainer.accumulation} micro-batches",
        "optimizer steps of one process": f"{steps:,} of {epoch:,} an epoch, in "
        f"{trainer.max_minutes or 'any number of'} minutes",
        "memory: weights and optimizer": f"{16 * count / 2**30:.2f} GiB",  # and gradient, fp32
    }


def _pictures(config: RFNetTrainingConfig, image_size: int) -> tuple[int, int, str]:
    """Return how many there are for training and for validation, and what their maps are."""
    data, size = config.data, config.data.image_size or image_size
    if uses_scenes(data):
        scenes = data.scenes
        maps = f"made of every batch by {config.maps.depth} and {config.maps.saliency}"
        return scenes.render + scenes.vae + scenes.x0_hat, 3 * scenes.validation, maps
    if are_shards([*data.train, *data.validation]):
        training, validation = open_both(data, size, config.maps, config.objective.labels == "coarse")
        return sum(training.counts), sum(validation.counts), "those in the shards"
    records = split_records(data)
    told = []
    for kind, known in build_maps(config.maps, config.rfnet.drop).items():
        if missing := sum(len(known.missing(some)) for some in records):
            told.append(f"{missing:,} of {kind} to be made by {getattr(config.maps, kind)}")
    return len(records[0]), len(records[1]), ", ".join(told) or "all there"
