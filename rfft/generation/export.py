"""Trained weights in the forms that other tools load. Everything is written as safetensors.

    diffusers  pytorch_lora_weights.safetensors, for pipe.load_lora_weights(folder)
    kohya      NAME.safetensors with the keys that kohya's sd-scripts writes, for these and ComfyUI
    peft       unet/, controlnet/: adapter folders, for PeftModel.from_pretrained(module, folder)
    merged     the whole pipeline, for from_pretrained(folder)

A trained ControlNet (or its LoRA, merged: no tool loads one) goes into controlnet/ as a ControlNetModel.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.models.int8 import dense_state

LORA = "denoiser_lora"  # the mode of model.train
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
INDEX = "model_index.json"
SETTINGS = ("requires_safety_checker", "force_zeros_for_empty_prompt")  # of SD's and of SDXL's pipeline

Weights = dict[str, Tensor]


def export_bundle(bundle: Bundle, format: str, out: Path, name: str) -> None:
    """Write a bundle's trained parts to an empty folder; `name` is what kohya's file is called.

    Raises UserError where the format cannot hold what was trained.
    """
    writers: dict[str, Callable[[], None]] = {
        "diffusers": lambda: _save_diffusers(bundle, out),
        "kohya": lambda: _save_kohya(bundle, out / f"{name}.safetensors"),
        "peft": lambda: _save_peft(bundle, out),
        "merged": lambda: _save_merged(bundle, out),
    }
    writers[format]()
    trains_controlnet = {"controlnet", "controlnet_lora"} & set(bundle.modes)
    if trains_controlnet and not (out / "controlnet").exists():
        merged_copy(bundle, "controlnet").save_pretrained(out / "controlnet")


def _save_diffusers(bundle: Bundle, out: Path) -> None:
    if LORA not in bundle.modes:
        return
    layers, part = {}, bundle.family.part
    for module, down, up, scale in _lora_pairs(bundle, LORA):
        layers[f"{part}.{module}.lora_A.weight"] = down
        # Many readers of this form know no alpha: with its scale in B, all get the same picture.
        layers[f"{part}.{module}.lora_B.weight"] = scale * up
    save_file(_plain(layers), out / DIFFUSERS_FILE, metadata={"format": "pt"})


def _save_kohya(bundle: Bundle, file: Path) -> None:
    if LORA not in bundle.modes:
        raise UserError(
            "kohya's form is for a LoRA of the denoiser; this run has none: use --format diffusers"
        )
    config = bundle.trained_module(LORA).peft_config["default"]
    prefix = bundle.family.kohya_prefix or f"lora_{bundle.family.part}"
    layers = {}
    for module, down, up, _ in _lora_pairs(bundle, LORA):
        key = f"{prefix}_" + bundle.family.kohya_name(module).replace(".", "_")
        layers[f"{key}.lora_down.weight"] = down
        layers[f"{key}.lora_up.weight"] = up
        layers[f"{key}.alpha"] = torch.tensor(float(config.lora_alpha))
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(config.lora_alpha),
    }
    save_file(_plain(layers), file, metadata=metadata)


def _save_peft(bundle: Bundle, out: Path) -> None:
    modes = [mode for mode in bundle.modes if mode.endswith("_lora")]
    if not modes:
        raise UserError("PEFT's form is for LoRA; this run has none: use --format diffusers")
    for mode in modes:
        module = bundle.trained_module(mode)
        folder = out / bundle.part_of(mode)
        module.peft_config["default"].save_pretrained(folder, inference_mode=True)
        layers = {f"base_model.model.{k}": v for k, v in get_peft_model_state_dict(module).items()}
        save_file(_plain(layers), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _save_merged(bundle: Bundle, out: Path) -> None:
    pipe = bundle.pipe
    if pipe is None:
        raise UserError(
            "this base's family has no diffusers pipeline to save: use --format diffusers or peft"
        )
    components = dict(pipe.components)
    networks = [name for name in (bundle.family.part, "controlnet") if getattr(bundle.unwrapped, name, None)]
    merged = {name: merged_copy(bundle, name) for name in networks}
    components |= {name: network for name, network in merged.items() if name in components}
    settings = {name: pipe.config[name] for name in SETTINGS if name in pipe.config}
    type(pipe)(**components, **settings).save_pretrained(out)
    if (
        "controlnet" in merged and "controlnet" not in components
    ):  # of a pipeline for text to image; RFFT finds it by the index
        controlnet = merged["controlnet"]
        controlnet.save_pretrained(out / "controlnet")
        index = json.loads((out / INDEX).read_text())
        index["controlnet"] = ["diffusers", type(controlnet).__name__]
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def merged_copy(bundle: Bundle, name: str) -> Any:
    """Return a new network, the denoiser's part or the ControlNet, with trained weights and no adapters."""
    trained = getattr(bundle.unwrapped, name)
    copy = type(trained).from_config(trained.config)
    with bundle.merged():
        state = dense_state(trained)
        copy.load_state_dict({k.replace("base_layer.", ""): v for k, v in state.items() if ".lora_" not in k})
    return copy.to(trained.dtype)


def _lora_pairs(bundle: Bundle, mode: str) -> list[tuple[str, Tensor, Tensor, float]]:
    """Return module name, A, B and alpha / rank of every adapter."""
    module = bundle.trained_module(mode)
    config, state = module.peft_config["default"], get_peft_model_state_dict(module)
    down = {k.removesuffix(".lora_A.weight"): v for k, v in state.items() if k.endswith(".lora_A.weight")}
    scale = config.lora_alpha / config.r
    return [(key, a, state[f"{key}.lora_B.weight"], scale) for key, a in down.items()]


def _plain(state: Weights) -> Weights:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
