"""rf-tiny-flow, a generator of SD 3's shape: MM-DiT, ControlNet and two CLIP text encoders, trained together.

It learns what rf-tiny learns (base.py), in the latents of rf-tiny's autoencoder, as a rectified flow.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from rfft.models.families.sd3 import StableDiffusion3
from rfft.training.pretrain.base import LENGTH, PaintedScenes, cached, load_weights, save_pipeline
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, on_device
from rfft.types import Conditioning, NoiseLevel

NAME, STEPS = "rf-tiny-flow", 9000
LR = 1e-3
WIDTH, HEADS, BLOCKS, CONTROL_BLOCKS = 160, 5, 6, 3
TEXT_WIDTH = 128  # of each text encoder
# The last ten of 40 steps, which RFFT trains, begin at sigma = 0.38, with the noise of rf-tiny's last ten.
SHIFT = 2.0


def text_encoder(words: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_modules(words: CLIPTokenizer) -> nn.ModuleDict:
    """Return the trained components by their names in the pipeline."""
    shared = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "attention_head_dim": WIDTH // HEADS,
        "num_attention_heads": HEADS,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 2 * TEXT_WIDTH,
        "pos_embed_max_size": 16,
        "qk_norm": "rms_norm",
    }
    transformer = SD3Transformer2DModel(**shared, num_layers=BLOCKS, joint_attention_dim=2 * TEXT_WIDTH)
    start_as_identity(transformer)
    # Blocks without text, as in SD 3.5 large's: where the product's edges are is nothing to read about.
    controlnet = SD3ControlNetModel(
        **shared,
        num_layers=CONTROL_BLOCKS,
        joint_attention_dim=None,
        force_zeros_for_pooled_projection=False,
    )
    start_as_identity(controlnet)
    return nn.ModuleDict(
        {
            "transformer": transformer,
            "controlnet": controlnet,
            "text_encoder": text_encoder(words),
            "text_encoder_2": text_encoder(words),
        }
    )


def start_as_identity(network: nn.Module) -> None:
    """Let each block change nothing at first, and the network say 0 (adaLN-Zero, arXiv 2212.09748)."""
    zero = ("norm1.linear", "norm1_context.linear", "proj_out")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(zero):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def draw_sigma(rng: np.random.Generator, count: int) -> Tensor:
    """Return noise levels [count,1,1,1], logit-normal: sigma = 1 / (1 + exp(-n)), n ~ N(0, 1).

    The draw that did best in SD 3's paper, arXiv 2403.03206, equation 19 with m = 0, s = 1.
    """
    return torch.from_numpy(rng.normal(size=(count, 1, 1, 1))).float().sigmoid()


def velocity_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared error of a predicted velocity, which is noise - x0 (arXiv 2209.03003)."""
    return (velocity - (noise - x0)).pow(2).mean()


def encode_text(nets: nn.ModuleDict, ids: Tensor) -> Conditioning:
    """Return the features of token ids [B,L] as SD 3's pipeline makes them, with gradients."""
    said = [nets[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    hidden = torch.cat([each.hidden_states[-2] for each in said], dim=-1)
    return Conditioning(hidden, {"pooled": torch.cat([each.text_embeds for each in said], dim=-1)})


def train(run: PretrainRun) -> None:
    """Write run.out/rf-tiny-flow beside rf-tiny, whose vae/ it takes; goes on from what is there, if any."""
    out = run.out / NAME
    data = PaintedScenes(run, out)
    nets = build_modules(data.tokenizer)
    if (out / "transformer").exists():
        load_weights(nets, out)
    nets = on_device(nets)
    data.vae.register_to_config(shift_factor=0.0)  # SD 3's pipelines want one
    family = StableDiffusion3(_pipeline(nets, data))
    control = cached("edges", data.vae, len(data.canny), lambda: _control(family, data.canny))

    def predict(x: Tensor, sigma: Tensor, ids: Tensor, edges: Tensor) -> Tensor:
        level = NoiseLevel(1000 * sigma.flatten(), 1 - sigma, sigma)
        x0_hat, eps_hat = family.denoiser(x, level, encode_text(nets, ids), edges)
        return eps_hat - x0_hat

    predict = run.compiled(predict)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        index, x0, ids = data.draw(rng)
        edges, noise = control[index].to(device(), torch.float32), torch.randn_like(x0)
        sigma = draw_sigma(rng, len(x0)).to(device())
        x = (1 - sigma) * x0 + sigma * noise
        with torch.autocast(device().type, torch.bfloat16):
            velocity = predict(x, sigma, ids, edges)
        return velocity_loss(velocity.float(), x0, noise)

    fit(nets, loss_fn, FitConfig(lr=LR), run, "flow")
    save_pipeline(family.pipe, out)


def _pipeline(nets: nn.ModuleDict, data: PaintedScenes) -> StableDiffusion3ControlNetPipeline:
    """Return the pipeline of the networks; there is no T5."""
    words = {"tokenizer": data.tokenizer, "tokenizer_2": data.tokenizer, "tokenizer_3": None}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return StableDiffusion3ControlNetPipeline(
        vae=data.vae, scheduler=scheduler, text_encoder_3=None, **words, **dict(nets.items())
    )


def _control(family: StableDiffusion3, canny: Tensor) -> Tensor:
    """Return what the ControlNet is shown of edges [N,64,64], [N,4,16,16] in half precision."""
    made = []
    for part in canny.split(200):
        edges = part.to(device(), torch.float32)[:, None].expand(-1, 3, -1, -1)
        made.append(family.encode_control(edges, edges).half().cpu())
    return torch.cat(made)
