#!/usr/bin/env python3
"""What the objective's precision does to the gradient: rf-tiny's LoRA, against fp32, on a CPU.

python tools/gradient_precision.py prints a table for docs/objectives.md. tf32 is CUDA's alone and left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rfft import build
from rfft.config.load import config_from
from rfft.data.conditions import noise_for
from rfft.objectives.base import predict_regularized, reward_gradient, roll_out

SETTINGS = {
    "data": {"count": 4},
    "evaluate": {"enabled": False},
    "rollout": {"guidance_scale": 3.0},
    "model": {"lora": {"target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]}},
    "objective": {"beta": 0.03},
}
STEPS = (30, 34, 39)


def gradients(precision: str, k: int) -> dict[str, Tensor]:
    """Return the LoRA's gradients, flat, of both terms at step k."""
    config = config_from(SETTINGS, [f"objective.precision={precision}"] if precision != "fp16" else [])
    bundle = build.build_bundle(config, "cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in bundle.trainable().values():  # B is zero at first: move it off the reference
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    samples = build.build_samples(config, "train")
    numbers = list(range(len(samples)))
    batch = build.build_conditions(config, bundle, samples).index(numbers)
    batch.noise = noise_for(0, numbers, tuple(batch.noise.shape[1:]))
    reward = build.build_reward(config, build.build_rfnet(config, "cpu"), "cpu")
    settings, schedule = build.build_objective(config).settings, bundle.schedule(40, config.data.image_size)
    if precision == "fp16":  # the config wants a loss scale with it, which no single gradient needs
        settings = type(settings)(**{**vars(settings), "precision": "fp16"})
    x = roll_out(bundle, batch, schedule, settings, 0, k, batch.noise)
    theta, reg = predict_regularized(bundle, x, k, batch, schedule, settings)
    judged = reward_gradient(bundle, reward, theta.guided.x0, batch, None)
    weights = list(bundle.trainable().values())
    terms = {"F_AC": (theta.guided.x0 * judged.grad).sum(), "L_CC": settings.beta * reg.loss}
    found = {name: torch.autograd.grad(term, weights, retain_graph=True) for name, term in terms.items()}
    return {name: torch.cat([grad.flatten() for grad in grads]) for name, grads in found.items()}


def main() -> None:
    print("| precision | k | term | cosine | relative error |\n| --- | --- | --- | --- | --- |")
    for k in STEPS:
        exact = gradients("fp32", k)
        for precision in ("bf16", "fp16"):
            found = gradients(precision, k)
            for name, grad in found.items():
                cosine = torch.cosine_similarity(grad, exact[name], dim=0).item()
                error = ((grad - exact[name]).norm() / exact[name].norm()).item()
                print(f"| {precision} | {k} | {name} | {cosine:.4f} | {error:.3f} |")


if __name__ == "__main__":
    main()
