"""rf-tiny's generator: tokenizer, CLIP text encoder, U-Net and ControlNet, trained together on AdWorld.

It is trained on scenes of every label without being told the label, so it makes the faults, too.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetInpaintPipeline,
    UNet2DConditionModel,
)
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


def train(run: PretrainRun) -> None:
    """Complete run.out/rf-tiny, which must have its vae/; goes on from the U-Net that is there, if any."""
    run.builds_on("vae")
    out = run.out / "rf-tiny"
    scenes = load_scenes("train", SCENES, seed=1)
    if (out / "tokenizer").exists():  # the weights that are there know these numbers
        tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    else:
        tokenizer = build_tokenizer(scenes.prompts + scenes.captions)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device())
    latents, canny = _precomputed(vae, scenes)
    ids = tokenizer(
        [*scenes.prompts, ""], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    nets = build_modules(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if (out / "unet").exists():
        _load(nets, out)
    nets = on_device(nets)
    unet, controlnet, text_encoder = (nets[name] for name in ("unet", "controlnet", "text_encoder"))
    ddim = scheduler()
    weights = loss_weights(ddim.alphas_cumprod).to(device())
    chances = sampling_chances(scenes.label)

    def predict_eps(x: Tensor, t: Tensor, tokens: Tensor, edge: Tensor) -> Tensor:
        text = text_encoder(tokens)[0]
        down, mid = controlnet(x, t, text, controlnet_cond=edge, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(x, t, text, **residuals, return_dict=False)[0]

    predict_eps = run.compiled(predict_eps)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.choice(len(scenes), size=BATCH, p=chances)
        x0 = latents[index].to(device(), torch.float32).contiguous(memory_format=torch.channels_last)
        edge = canny[index].to(device(), torch.float32)[:, None].expand(-1, 3, -1, -1)
        tokens = ids[np.where(rng.random(BATCH) < TEXT_DROPOUT, len(scenes), index)].to(device())
        noise, t = torch.randn_like(x0), torch.from_numpy(rng.integers(0, 1000, size=BATCH)).to(device())
        x = ddim.add_noise(x0, noise, t)
        with torch.autocast(device().type, torch.bfloat16):
            eps = predict_eps(x, t, tokens, edge)
        return (weights[t] * (eps.float() - noise).pow(2).mean((1, 2, 3))).mean()

    fit(nets, loss_fn, FitConfig(lr=8e-4, ema=0.999), run, "base")
    save_pipeline(nets, vae, tokenizer, out)


def _load(nets: nn.ModuleDict, folder: Path) -> None:
    kinds = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel, "text_encoder": CLIPTextModel}
    for name, kind in kinds.items():
        nets[name].load_state_dict(kind.from_pretrained(folder / name).float().state_dict())


def save_pipeline(nets: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer, out: Path) -> None:
    """The folder that StableDiffusionControlNetInpaintPipeline.from_pretrained loads, in half precision."""
    pipe = StableDiffusionControlNetInpaintPipeline(
        vae=vae, tokenizer=tokenizer, scheduler=scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **dict(nets.items()),
    )  # fmt: skip
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
    # latents belong to one autoencoder
    mark = f"{sum(p.double().abs().sum().item() for p in vae.parameters()):.6f}"
    path = cache_folder() / f"latents-{len(scenes)}-{mark}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    latents, canny = [], []
    for chunk in np.array_split(np.arange(len(scenes)), max(len(scenes) // 200, 1)):
        pixels = scenes.pixels("image", chunk).to(device()) * 2 - 1
        latents.append((vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half().cpu())
        canny.append(torch.stack([edges(p)[0] for p in scenes.pixels("product", chunk)]).byte())
    result = torch.cat(latents), torch.cat(canny)
    with new_file(path) as file:
        torch.save(result, file)
    return result
