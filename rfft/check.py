"""What a config would run, without running it: `rfft check`."""

from __future__ import annotations

from pathlib import Path

import torch

from rfft import build
from rfft.config import Config, Data
from rfft.data.cutout import load_cutout
from rfft.data.products import read_products, read_prompts
from rfft.diffusion import cfg_eps
from rfft.errors import UserError
from rfft.estimate import Cost, cost, fake, imagine, weight_bytes
from rfft.models.auxiliary import find_depth
from rfft.models.bundle import Bundle
from rfft.models.lora import merged_bytes
from rfft.models.pretrained import find_folder
from rfft.models.reward import RewardModel
from rfft.models.skeleton import load_skeleton, skeleton_batch
from rfft.step import Draw, render

CAPTION = 32  # tokens


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
        "objective": f"F_AC + {config.objective.beta} * {config.objective.regularizer}",
        "optimizer steps": f"{trainer.steps}, in {trainer.max_minutes or 'any number of'} minutes",
        "images per step and process": f"{trainer.batch_size} x {trainer.accumulation} micro-batches",
        "denoiser forwards per micro-batch": forwards(config),
        **costs(config),
    }


def products(data: Data, source: str, prompts: str | None) -> str:
    """Opens every picture: better now than in the middle of a run."""
    prompted = f", {len(read_prompts(prompts))} prompts of {prompts}" if prompts else ""
    if source.startswith("adworld:"):
        return source + prompted
    found = read_products(source)
    unusable = 0
    for product in found:
        try:
            load_cutout(product.image, data.white_level if data.white_to_alpha else None, data.max_pixels)
        except UserError:
            if data.on_error == "stop" or source != data.products:
                raise
            unusable += 1
    noted = f", {unusable} of them cannot be used" if unusable else ""
    return f"{len(found)} of {source}{noted}{prompted}"


def forwards(config: Config) -> str:
    """Each is one batched call for prompt and null together; the draw of the trained step makes the range."""
    fewest, most = rolled(config)
    trained = config.rollout.grad_steps
    references = trained * (config.objective.regularizer != "none")
    return f"{fewest} to {most} without gradient + {trained} with + {references} of the reference"


def rolled(config: Config) -> tuple[int, int]:
    """Fewest and most forwards of a rollout without gradient."""
    rollout = config.rollout
    draw = Draw(config.run.seed, rollout.steps, rollout.last, rollout.grad_steps, config.trainer.accumulation)
    stops = [max(draw(step, 0)) + 1 - rollout.grad_steps for step in range(1000)]
    return min(stops), max(stops)


def costs(config: Config) -> dict[str, str]:
    """Parameters, FLOPs of an optimizer step and memory of a process, without the generator's weights."""
    model, trainer = config.model, config.trainer
    dtype = getattr(torch, model.dtype)
    bundle = load_skeleton(model.bundle, model.controlnet, model.tiny_vae, dtype)
    bundle.train(list(model.train), model.lora.rank, model.lora.alpha, model.lora.target_modules)
    if model.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    reward = build.build_reward(config, "cpu")
    denoiser, judge = _calls(config, bundle, reward)
    sizes = [parameter.numel() for parameter in bundle.trainable().values()]
    total = sum(p.numel() for module in (*bundle.modules, reward) for p in module.parameters())

    trained = config.rollout.grad_steps
    references = trained * (config.objective.regularizer != "none")
    forwards = sum(rolled(config)) / 2 + trained + references
    parts = -(-trainer.batch_size // (trainer.decode_batch or trainer.batch_size))
    judged = trained * parts * (judge.forward + judge.backward)
    flops = trainer.accumulation * (forwards * denoiser.forward + trained * denoiser.backward + judged)
    copies = filter(None, [bundle.frozen_controlnet])  # the reference, where a whole module is trained
    weights = weight_bytes([*bundle.modules, bundle.unwrapped, *copies, reward])
    adam = 12 * sum(sizes)  # gradient and two moments, fp32
    # The rollout's merged copy is gone before the forward with gradient.
    merged, waiting = merged_bytes(bundle.unwrapped), denoiser.activations + judge.activations
    return {
        "trained": f"{', '.join(model.train)}: {sum(sizes):,} parameters in {len(sizes)} tensors",
        "parameters in all": f"{total:,}",
        "per optimizer step and process": f"{flops / 1e12:,.2f} TFLOP",
        "memory: weights": _gib(weights),
        "memory: gradients and optimizer": _gib(adam),
        "memory: rollout's merged weights": _gib(merged),
        "memory: denoiser's activations": _gib(denoiser.activations),
        "memory: decoder's and reward's": _gib(judge.activations),
        "memory: together, at least": _gib(weights + adam + max(merged, waiting)),
    }


def _calls(config: Config, bundle: Bundle, reward: RewardModel) -> tuple[Cost, Cost]:
    """Of the denoiser for a micro-batch (prompt and null at once); of decoder and reward for a part of it."""
    trainer, size = config.trainer, config.data.image_size
    half = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[trainer.mixed_precision]
    precise = config.objective.fp32 or half is None
    with fake():
        imagine([*bundle.modules, bundle.unwrapped, reward])
        batch = skeleton_batch(bundle, size, trainer.batch_size, CAPTION)
        t = torch.zeros((), dtype=torch.long)
        with torch.autocast("cpu", half, enabled=not precise):
            weights = bundle.unwrapped.parameters()
            denoiser = cost(lambda: torch.cat(cfg_eps(bundle.denoiser, batch.noise, t, batch)), weights)
        part = batch.index(slice(trainer.decode_batch or trainer.batch_size))
        x0 = part.noise.requires_grad_()
        frozen = [p for module in (*bundle.modules, reward) for p in module.parameters()]
        with torch.autocast("cpu", half, enabled=half is not None):
            return denoiser, cost(lambda: reward(render(bundle, x0, part, preview=True), part), frozen)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
