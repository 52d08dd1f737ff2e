"""rf-tiny's generator: tokenizer, CLIP text encoder, U-Net and ControlNet, trained together on AdWorld.

It is trained on scenes of every label without being told the label, so it makes the faults, too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rfft.adworld.scenes import Scenes, cache_folder, load_scenes
from rfft.data.cutout import edges
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, on_device
from rfft.utils.atomic_io import new_file

BATCH, STEPS, SCENES = 48, 3000, 30_000
AVAILABLE = 0.8  # share of available scenes in a batch: what the network cannot draw adds to the other faults
TEXT_DROPOUT = 0.1  # classifier-free guidance
MIN_SNR = 5.0  # arXiv 2303.09556
LENGTH = 40
Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, Tensor])
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def build_tokenizer(texts: list[str], vocab_size: int = 1500) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned on the grammar's own texts."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789,.'-()&"),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator((text.lower() for text in texts), trainer)
    model = json.loads(bpe.to_str())["model"]
    # The trainer numbers letters in no fixed order; and one that never ended a word may do so later.
    letters = sorted(token for token in model["vocab"] if len(token) == 1)
    merged = ["".join(pair) for pair in model["merges"]]
    tokens = [*SPECIAL, *letters, *(f"{letter}</w>" for letter in letters), *merged]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=LENGTH
    )


def build_modules(vocab_size: int, bos: int, eos: int) -> nn.ModuleDict:
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,  # heads, as in SD 1.5
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=bos,
            eos_token_id=eos,
        )
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder, "controlnet": controlnet})


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def loss_weights(alpha_bar: Tensor) -> Tensor:
    """min(SNR, 5) / SNR: the eps loss of each timestep."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=MIN_SNR) / snr


def sampling_chances(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chance of each scene, [N], so that AVAILABLE of what is drawn is available."""
    available = labels == 0
    return np.where(available, AVAILABLE / available.sum(), (1 - AVAILABLE) / (~available).sum())


class PaintedScenes:
    """AdWorld's scenes, of every label, as a generator learns to paint them."""

    def __init__(self, run: PretrainRun, folder: Path) -> None:
        """Draw or read the scenes; their latents are those of run.out/rf-tiny/vae.

        The tokenizer is that of the weights in `folder`, which know its numbers, or else rf-tiny's, or new.
        """
        run.builds_on("vae")
        rf_tiny, scenes = run.out / "rf-tiny", load_scenes("train", SCENES, seed=1)
        known = [place / "tokenizer" for place in (folder, rf_tiny) if (place / "tokenizer").exists()]
        self.tokenizer = (
            CLIPTokenizer.from_pretrained(known[0])
            if known
            else build_tokenizer(scenes.prompts + scenes.captions)
        )
        self.vae = AutoencoderKL.from_pretrained(rf_tiny / "vae", torch_dtype=torch.float32).to(device())
        self.latents, self.canny = _precomputed(self.vae, scenes)
        self.chances = sampling_chances(scenes.label)
        self.ids = tokenize(self.tokenizer, [*scenes.prompts, ""])

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """Return the numbers of a batch of scenes, their latents [B,4,16,16] and their prompts' ids [B,L].

        Now and then a prompt is the empty one.
        """
        empty = len(self.latents)
        index = rng.choice(empty, size=BATCH, p=self.chances)
        ids = self.ids[np.where(rng.random(BATCH) < TEXT_DROPOUT, empty, index)]
        return index, self.latents[index].to(device(), torch.float32), ids.to(device())


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Return token ids [N,LENGTH]."""
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    return tokenizer(prompts, **options, return_tensors="pt").input_ids


def train(run: PretrainRun) -> None:
    """Complete run.out/rf-tiny, which must have its vae/; goes on from the U-Net that is there, if any."""
    out = run.out / "rf-tiny"
    data = PaintedScenes(run, out)
    words = data.tokenizer
    nets = build_modules(len(words), words.bos_token_id, words.eos_token_id)
    if (out / "unet").exists():
        load_weights(nets, out)
    nets = on_device(nets)
    unet, controlnet, text_encoder = (nets[name] for name in ("unet", "controlnet", "text_encoder"))
    ddim = scheduler()
    weights = loss_weights(ddim.alphas_cumprod).to(device())

    def predict_eps(x: Tensor, t: Tensor, tokens: Tensor, edge: Tensor) -> Tensor:
        text = text_encoder(tokens)[0]
        down, mid = controlnet(x, t, text, controlnet_cond=edge, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(x, t, text, **residuals, return_dict=False)[0]

    predict_eps = run.compiled(predict_eps)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        index, x0, tokens = data.draw(rng)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        edge = data.canny[index].to(device(), torch.float32)[:, None].expand(-1, 3, -1, -1)
        noise, t = torch.randn_like(x0), torch.from_numpy(rng.integers(0, 1000, size=BATCH)).to(device())
        x = ddim.add_noise(x0, noise, t)
        with torch.autocast(device().type, torch.bfloat16):
            eps = predict_eps(x, t, tokens, edge)
        return (weights[t] * (eps.float() - noise).pow(2).mean((1, 2, 3))).mean()

    fit(nets, loss_fn, FitConfig(lr=8e-4, ema=0.999), run, "base")
    pipe = StableDiffusionControlNetInpaintPipeline(
        vae=data.vae, tokenizer=words, scheduler=ddim, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **dict(nets.items()),
    )  # fmt: skip
    save_pipeline(pipe, out)


def load_weights(nets: nn.ModuleDict, folder: Path) -> None:
    """Give networks the weights of a pipeline's folder that has components of their names."""
    for name, network in nets.items():
        kind: Any = type(network)
        network.load_state_dict(kind.from_pretrained(folder / name).float().state_dict())


def save_pipeline(pipe: DiffusionPipeline, out: Path) -> None:
    """Write the folder that the pipeline's from_pretrained loads, in half precision."""
    diffusers_logging.set_verbosity_error()  # it speaks of parts that are not there, and should not be
    pipe.to(dtype=torch.float16).save_pretrained(out)
    for file in out.glob("*/config.json"):  # diffusers notes where a part came from on this machine
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if (
            "dtype" in config
        ):  # transformers would load its part in half precision, diffusers loads the others in full
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def _precomputed(vae: AutoencoderKL, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Latents [N, 4, 16, 16] (half) and Canny edges [N, 64, 64] (bytes 0 or 1) of all scenes, cached."""

    def make() -> tuple[Tensor, Tensor]:
        latents, canny = [], []
        for chunk in np.array_split(np.arange(len(scenes)), max(len(scenes) // 200, 1)):
            pixels = scenes.pixels("image", chunk).to(device()) * 2 - 1
            latents.append((vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half().cpu())
            canny.append(torch.stack([edges(p)[0] for p in scenes.pixels("product", chunk)]).byte())
        return torch.cat(latents), torch.cat(canny)

    return cached("latents", vae, len(scenes), make)


def cached(name: str, vae: AutoencoderKL, count: int, make: Callable[[], Tensors]) -> Tensors:
    """Return tensors of `count` scenes from the cache, made when they are first asked for."""
    # latents belong to one autoencoder
    mark = f"{sum(p.double().abs().sum().item() for p in vae.parameters()):.6f}"
    path = cache_folder() / f"{name}-{count}-{mark}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    result = make()
    with new_file(path) as file:
        torch.save(result, file)
    return result
