"""One optimizer step of a full-width base of random weights; prints what it took as JSON.

python -m tests.full.measure sd15 unet_lora FOLDER [a.b=c ...], where FOLDER gets the base's config files.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from rfft import build
from rfft.config import Config, load_config
from rfft.learner import Learner
from rfft.models.bundle import Bundle
from tests import shapes


def settings(name: str, mode: str, folder: Path, overrides: list[str]) -> Config:
    """128 px, one product, four DDIM steps, full precision."""
    product = np.zeros((96, 96, 4), np.uint8)
    product[24:72, 32:64] = (200, 120, 40, 255)
    (folder / "products").mkdir(parents=True, exist_ok=True)
    Image.fromarray(product).save(folder / "products/vase.png")
    (folder / "prompts.json").write_text(json.dumps([{"prompt": "a vase in a park", "negative_prompt": ""}]))
    few = ["rollout.steps=4", "rollout.last=2", "rollout.grad_steps=1", "trainer.batch_size=1"]
    own = [f"model.bundle={folder}", f"model.train=[{mode}]", f"data.products={folder / 'products'}"]
    own += [f"data.prompts={folder / 'prompts.json'}", "data.image_size=128", "evaluate.enabled=false"]
    return load_config("tiny", [*few, *own, "trainer.mixed_precision=no", *overrides])


def save_configs(pipe: Any, folder: Path) -> None:
    """What `rfft check` reads."""
    pipe.save_config(folder)
    for part in ("unet", "vae", "controlnet", "scheduler"):
        getattr(pipe, part).save_config(folder / part)
    for part in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).config.save_pretrained(folder / part)


def peak() -> int:
    """Bytes, since the process began."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    name, mode, folder, *overrides = sys.argv[1:]
    config = settings(name, mode, Path(folder), overrides)
    reward = build.build_reward(config, "cpu")
    samples = build.build_samples(config, "train")
    accelerator = Accelerator(cpu=True)
    before = peak()  # libraries, and the rewards
    pipe = shapes.pipeline(name, full=True)
    save_configs(pipe, Path(folder))
    bundle = Bundle(pipe)
    lora = config.model.lora
    bundle.train([mode], lora.rank, lora.alpha, lora.target_modules)
    if config.model.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    conditions = build.build_conditions(config, bundle, samples)
    learner = Learner(config, accelerator, bundle, reward, conditions)
    # A of a LoRA has no gradient yet, because B is zero.
    watched = {key: p for key, p in bundle.trainable().items() if "lora_A" not in key}
    first = {key: p.detach().sum().item() for key, p in watched.items()}
    began = time.process_time()
    scalars = learner.step() or {}
    seconds = time.process_time() - began
    moved = sum(p.detach().sum().item() != first[key] for key, p in watched.items())
    print(
        json.dumps(
            {
                "peak": peak(),
                "before": before,
                "cpu_seconds": seconds,
                "loss": scalars["train/loss"],
                "grad_norm": scalars["train/grad_norm"],
                "moved": moved,
                "watched": len(first),
                "parameters": sum(p.numel() for module in bundle.modules for p in module.parameters()),
            }
        )
    )


if __name__ == "__main__":
    main()
