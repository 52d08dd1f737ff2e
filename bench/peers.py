"""The others, in their environment: python bench/peers.py trl|refl no|bf16, driven by bench/run.py."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast
from trl import AlignPropConfig, AlignPropTrainer, DefaultDDPOStableDiffusionPipeline

from bench.setting import BASE, BATCH, GUIDANCE, LAST, LR, PROMPTS, RANK, SIZE, STEPS, TARGETS, Step, serve

KIND = "PreTrainedTokenizerFast"


def pipeline_folder() -> str:
    """Return a folder of the base that these older libraries read: no ControlNet, a plain fast tokenizer."""
    folder = Path(tempfile.mkdtemp())
    index = json.loads((BASE / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", KIND]}
    del index["controlnet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        (folder / part).symlink_to(BASE / part)
    known = json.loads((BASE / "tokenizer" / "tokenizer_config.json").read_text())
    words = {name: known[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    file = str(BASE / "tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=file, model_max_length=known["model_max_length"], **words
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return str(folder)


def trl(precision: str) -> None:
    """AlignProp, by its trainer as it is: the gradient of the last step, all 40 forwards within autograd."""
    PartialState(cpu=not torch.cuda.is_available())  # before trl's first message
    pipeline = DefaultDDPOStableDiffusionPipeline(pipeline_folder())
    pipeline.sd_pipeline.unet.config.sample_size = SIZE // pipeline.sd_pipeline.vae_scale_factor
    prompts = iter(PROMPTS * 10_000)
    config = AlignPropConfig(
        sample_num_steps=STEPS,
        sample_eta=0.0,
        sample_guidance_scale=GUIDANCE,
        train_batch_size=BATCH,
        train_gradient_accumulation_steps=1,
        train_learning_rate=LR,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=STEPS - 1,
        mixed_precision=precision,
        accelerator_kwargs={"cpu": not torch.cuda.is_available()},
        save_freq=10**9,
    )
    trainer = AlignPropTrainer(
        config, lambda images, *_: (images.float().mean((1, 2, 3)), {}), lambda: (next(prompts), {}), pipeline
    )

    def step() -> Step:
        trainer.step(1, 0)
        return Step(BATCH, STEPS, STEPS)

    serve(step)


def refl(precision: str) -> None:
    """ImageReward's loop (ReFL, arXiv 2304.05977; its train_refl.py) on LoRA, with guidance in both parts."""
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder(), safety_checker=None).to(
        accelerator.device, half
    )
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        network.requires_grad_(False)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)
    pipe.unet.add_adapter(lora)
    weights = [p for p in pipe.unet.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=LR)
    unet, optimizer = accelerator.prepare(pipe.unet, optimizer)
    text = pipe.encode_prompt(PROMPTS, accelerator.device, 1, True)
    text = torch.cat([text[1], text[0]])  # negative ones first
    side = SIZE // pipe.vae_scale_factor

    def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        null, z = unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
        return null + GUIDANCE * (z - null)

    def step() -> Step:
        scheduler.set_timesteps(STEPS, device=accelerator.device)
        x = torch.randn(BATCH, 4, side, side, device=accelerator.device)
        mid = random.randint(STEPS - LAST, STEPS - 1)
        with torch.no_grad():
            for t in scheduler.timesteps[:mid]:
                x = scheduler.step(guided(x, t), t, x).prev_sample
        t = scheduler.timesteps[mid]
        x0 = scheduler.step(guided(x, t), t, x).pred_original_sample.to(half)
        image = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample / 2 + 0.5
        loss = (2 - image.float().mean((1, 2, 3))).relu().mean() * 1e-3
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return Step(BATCH, mid + 1, STEPS - (LAST - 1) / 2)

    serve(step)


if __name__ == "__main__":
    torch.manual_seed(0)
    {"trl": trl, "refl": refl}[sys.argv[1]](sys.argv[2])
