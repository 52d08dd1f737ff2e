"""What a config would run, without running it: `rfft check`."""

from __future__ import annotations

from pathlib import Path

import torch

from rfft.config import Config, Data
from rfft.data.cutout import load_cutout
from rfft.data.products import read_products, read_prompts
from rfft.models.auxiliary import find_depth
from rfft.models.bundle import load_bundle
from rfft.models.pretrained import find_folder
from rfft.step import Draw


def describe(config: Config) -> dict[str, str]:
    """Facts by name; a UserError for anything that is missing or broken."""
    data, reward, evaluate, trainer = config.data, config.reward, config.evaluate, config.trainer
    facts = {
        "run folder": str(Path(config.run.out) / config.run.name),
        "products": products(data, data.products, data.prompts),
        "evaluation": products(data, evaluate.products, evaluate.prompts) if evaluate.enabled else "none",
    }
    find_depth(reward.depth)
    networks = [reward.rfnet, reward.saliency, evaluate.judge, evaluate.probe]
    for network in filter(None, networks):
        find_folder(network)
    return facts | {
        "networks": ", ".join(filter(None, [reward.depth, *networks])),
        "bundle": config.model.bundle,
        "trained": trained(config),
        "objective": f"F_AC + {config.objective.beta} * {config.objective.regularizer}",
        "optimizer steps": f"{trainer.steps}, in {trainer.max_minutes or 'any number of'} minutes",
        "images per step and process": f"{trainer.batch_size} x {trainer.accumulation} micro-batches",
        "denoiser forwards per micro-batch": forwards(config),
    }


def products(data: Data, source: str, prompts: str | None) -> str:
    """Opens every picture: better now than in the middle of a run."""
    prompted = f", {len(read_prompts(prompts))} prompts of {prompts}" if prompts else ""
    if source.startswith("adworld:"):
        return source + prompted
    found = read_products(source)
    for product in found:
        load_cutout(product.image, data.white_level if data.white_to_alpha else None, data.max_pixels)
    return f"{len(found)} of {source}{prompted}"


def trained(config: Config) -> str:
    """Loads the bundle and counts what training would change."""
    model = config.model
    bundle = load_bundle(model.bundle, getattr(torch, model.dtype), model.controlnet)
    bundle.train(list(model.train), model.lora.rank, model.lora.alpha, model.lora.target_modules)
    sizes = [parameter.numel() for parameter in bundle.trainable().values()]
    return f"{', '.join(model.train)}: {sum(sizes):,} parameters in {len(sizes)} tensors"


def forwards(config: Config) -> str:
    """Each is one batched call for prompt and null together; the draw of the trained step makes the range."""
    rollout, references = config.rollout, config.objective.regularizer != "none"
    draw = Draw(config.run.seed, rollout.steps, rollout.last, rollout.grad_steps, config.trainer.accumulation)
    stops = [max(draw(step, 0)) + 1 for step in range(1000)]
    rolled = f"{min(stops) - rollout.grad_steps} to {max(stops) - rollout.grad_steps} without gradient"
    return f"{rolled} + {rollout.grad_steps} with + {rollout.grad_steps * references} of the reference"
