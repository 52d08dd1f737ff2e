"""Exported weights, loaded back by the tools they are for, paint what the trainer paints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetInpaintPipeline
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from rfft.errors import UserError
from rfft.export import export_bundle
from rfft.generate import paint
from rfft.models.bundle import Bundle, load_bundle
from rfft.types import Batch

STEPS, SCALE = 4, 3.0
Make = Callable[..., Bundle]
FORMATS = [
    ("diffusers", ["unet_lora"]),
    ("diffusers", ["controlnet"]),
    ("diffusers", ["unet_lora", "controlnet_lora"]),
    ("kohya", ["unet_lora"]),
    ("kohya", ["unet_lora", "controlnet"]),
    ("peft", ["unet_lora"]),
    ("peft", ["unet_lora", "controlnet_lora"]),
    ("merged", ["unet_lora"]),
    ("merged", ["unet_lora", "controlnet"]),
    ("merged", ["controlnet_lora"]),
]


def load_back(folder: Path, base: Path, format: str) -> Any:
    """As a user of diffusers and peft would, with nothing of ours."""
    load = StableDiffusionControlNetInpaintPipeline.from_pretrained
    if format == "merged":
        return load(folder, safety_checker=None)
    options: dict[str, Any] = {"safety_checker": None}
    if (folder / "controlnet/diffusion_pytorch_model.safetensors").exists():
        options["controlnet"] = ControlNetModel.from_pretrained(folder / "controlnet")
    pipe = load(base, **options)
    if format == "peft":
        for name in ("unet", "controlnet"):
            if (folder / name / "adapter_config.json").exists():
                PeftModel.from_pretrained(getattr(pipe, name), folder / name)  # injects into the module
    elif lora := list(folder.glob("*.safetensors")):
        pipe.load_lora_weights(folder, weight_name=lora[0].name)
    return pipe


def stock_picture(pipe: Any, batch: Batch) -> Tensor:
    """What diffusers paints, the product's own pixels not yet pasted."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=batch.z.hidden,
        negative_prompt_embeds=batch.null.hidden,
        image=2 * batch.product[:, :3] * batch.product[:, 3:] - 1,
        mask_image=1 - batch.product[:, 3:],
        control_image=batch.edges,
        latents=batch.noise,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        controlnet_conditioning_scale=1.0,
        strength=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def with_drawn_latent(bundle: Bundle, batch: Batch) -> Batch:
    """The pipeline draws the product's latent from the VAE's posterior: draw the same one."""
    pixels = batch.product[:, :3] * batch.product[:, 3:]
    posterior = bundle.vae.encode(2 * pixels - 1).latent_dist
    drawn = posterior.sample(torch.Generator().manual_seed(0)) * bundle.vae.config.scaling_factor
    return replace(batch, x_o=drawn.detach())


@pytest.mark.parametrize(("format", "modes"), FORMATS)
def test_the_picture_is_the_trainers(
    pipeline_folder: Path,
    tmp_path: Path,
    make_trained: Make,
    make_batch: Callable[..., Batch],
    format: str,
    modes: list[str],
) -> None:
    trained = make_trained(*modes)
    batch = with_drawn_latent(trained, make_batch(trained))
    schedule = trained.schedule(STEPS)
    ours = paint(trained, batch, schedule, SCALE)
    base = paint(trained, batch, schedule, SCALE, reference=True)
    assert (ours - base).abs().mean() > 1e-3  # training shows

    export_bundle(trained, format, tmp_path, "lora")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pth")]
    theirs = stock_picture(load_back(tmp_path, pipeline_folder, format), batch)
    alpha = batch.product[:, 3:]
    theirs = alpha * batch.product[:, :3] + (1 - alpha) * theirs
    assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path, make_trained: Make) -> None:
    trained = make_trained("unet_lora", "controlnet")
    before = {name: tensor.clone() for name, tensor in trained.unwrapped.state_dict().items()}
    for format in ("diffusers", "kohya", "peft", "merged"):
        (tmp_path / format).mkdir()
        export_bundle(trained, format, tmp_path / format, "lora")
    after = trained.unwrapped.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_kohya_keys_are_those_comfyui_knows(
    pipeline_folder: Path, tmp_path: Path, make_trained: Make
) -> None:
    """ComfyUI: "lora_unet_" and the diffusers U-Net's parameter name without .weight, dots as underscores."""
    export_bundle(make_trained("unet_lora"), "kohya", tmp_path, "tiny")
    layers = load_file(tmp_path / "tiny.safetensors")
    unet = load_bundle(pipeline_folder).pipe.unet
    known = {
        "lora_unet_" + name.removesuffix(".weight").replace(".", "_"): parameter
        for name, parameter in unet.named_parameters()
        if name.endswith(".weight")
    }
    modules = {key.partition(".")[0] for key in layers}
    assert modules <= known.keys() and len(layers) == 3 * len(modules)
    for module in modules:
        down, up = layers[f"{module}.lora_down.weight"], layers[f"{module}.lora_up.weight"]
        assert layers[f"{module}.alpha"].shape == () and float(layers[f"{module}.alpha"]) == 4
        assert down.shape[0] == up.shape[1] == 2
        delta = up.flatten(1) @ down.flatten(1)
        assert delta.shape == known[module].flatten(1).shape


def test_the_peft_adapter_names_rank_and_alpha(tmp_path: Path, make_trained: Make) -> None:
    export_bundle(make_trained("unet_lora"), "peft", tmp_path, "lora")
    config = json.loads((tmp_path / "unet/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)


@pytest.mark.parametrize(("format", "modes"), [("kohya", ["controlnet_lora"]), ("peft", ["controlnet"])])
def test_a_form_that_does_not_fit(tmp_path: Path, make_trained: Make, format: str, modes: list[str]) -> None:
    with pytest.raises(UserError, match="use --format diffusers"):
        export_bundle(make_trained(*modes), format, tmp_path, "lora")
    assert not list(tmp_path.iterdir())
