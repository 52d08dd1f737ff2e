"""One optimizer step of a full-width base of random weights; prints what it took as JSON.

After a step of denoiser_lora in fp32, diffusers' own pipeline loads the LoRA, to compare what U-Nets predict.

python -m tests.full.measure sd15 denoiser_lora FOLDER [a.b=c ...], where FOLDER gets the base's config files.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from rfft import build
from rfft.config.load import load_config
from rfft.config.schema import Config
from rfft.generation.export import export_bundle
from rfft.models.bundle import Bundle
from rfft.models.families import KNOWN
from rfft.training.learner import RFFTLearner
from tests import bases, shapes


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
    for part in ("unet", "transformer", "vae", "controlnet", "scheduler"):
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).save_config(folder / part)
    for part in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).config.save_pretrained(folder / part)


def peak() -> int:
    """Bytes, since the process began."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load_pipeline(name: str, config: Config) -> Any:
    """Built in the config's precision, as it would be loaded."""
    torch.set_default_dtype(getattr(torch, config.model.dtype))
    try:
        return bases.wide(name) if name in bases.WIDE else shapes.pipeline(name, full=True)
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def predict(unet: Any) -> Tensor:
    """The U-Net's output for something."""
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(1, 8, unet.config.cross_attention_dim, generator=generator)
    added = {}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(1, pooled, generator=generator), "time_ids": torch.zeros(1, 6)}
    x = torch.randn(1, 4, 16, 16, generator=generator)
    return unet(x, torch.tensor(501), said, added_cond_kwargs=added or None, return_dict=False)[0]


def stock_with_lora(name: str, config: Config, lora: Path) -> tuple[Tensor, Tensor]:
    """What diffusers' own pipeline predicts before and after it has loaded the LoRA."""
    pipe = load_pipeline(name, config)
    before = predict(pipe.unet)
    pipe.load_lora_weights(lora)
    return before, predict(pipe.unet)


def main() -> None:
    name, mode, folder, *overrides = sys.argv[1:]
    config = settings(name, mode, Path(folder), overrides)
    rfnet = build.build_rfnet(config, "cpu")
    reward = build.build_reward(config, rfnet, "cpu")
    samples = build.build_samples(config, "train")
    accelerator = Accelerator(cpu=True)
    before = peak()  # libraries, and the rewards
    pipe = load_pipeline(name, config)
    save_configs(pipe, Path(folder))
    family: Any = KNOWN.get(name)
    bundle = Bundle(family(pipe)) if name in bases.WIDE else shapes.bundle_of(pipe)
    lora = config.model.lora
    bundle.train([mode], lora.rank, lora.alpha, lora.target_modules)
    if config.model.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    conditions = build.build_conditions(config, bundle, samples)
    learner = RFFTLearner(config, accelerator, bundle, reward, rfnet, conditions)
    # A of a LoRA has no gradient yet, because B is zero.
    watched = {key: p for key, p in bundle.trainable().items() if "lora_A" not in key}
    first = {key: p.detach().sum().item() for key, p in watched.items()}
    began = time.process_time()
    scalars = learner.step() or {}
    seconds = time.process_time() - began
    moved = sum(p.detach().sum().item() != first[key] for key, p in watched.items())
    every = {p for module in [*bundle.modules, bundle.unwrapped] for p in module.parameters()}
    found = {
        "peak": peak(),
        "before": before,
        "cpu_seconds": seconds,
        "loss": scalars["train/loss"],
        "grad_norm": scalars["train/grad_norm"],
        "moved": moved,
        "watched": len(first),
        "strays": sum(p.grad is not None for p in every if not p.requires_grad),
        "parameters": sum(p.numel() for p in every),
    }
    if mode == "denoiser_lora" and name in shapes.FULL and config.model.dtype == "float32":
        with tempfile.TemporaryDirectory() as out:
            export_bundle(bundle, "diffusers", Path(out), "lora")
            trained = predict(bundle.pipe.unet)
            accelerator.free_memory()
            del pipe, bundle, learner, conditions, watched, every  # two would not fit
            gc.collect()
            base, stock = stock_with_lora(name, config, Path(out))
        found |= {"changed": (trained - base).norm().item(), "stock_off": (trained - stock).norm().item()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
