"""LoRA adapters on U-Net and ControlNet: attach, merge by swapping, switch off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rfft.errors import UserError


def attach(
    module: Any, rank: int, alpha: float, target_modules: list[str], without: Sequence[str] = ()
) -> None:
    """Give a module an adapter named "default": fp32, starting at zero, its only trainable part.

    `without`: names of submodules that get none, nor what is in them.
    """
    inside = tuple(f"{name}." for name in without)
    excluded = [name for name, _ in module.named_modules() if name in without or name.startswith(inside)]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=target_modules, exclude_modules=excluded or None
    )
    try:
        if hasattr(module, "add_adapter"):
            module.add_adapter(config)
        else:  # a plain module, of a family of one's own
            inject_adapter_in_model(config, module)
            module.peft_config = {"default": config}
    except ValueError as error:
        reason = str(error).splitlines()[0]
        where = f"model.lora.target_modules {target_modules} on {type(module).__name__}"
        raise UserError(f"{where}: {reason}") from error
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The base model, bit for bit."""
    layers = lora_layers(module)
    try:
        for layer in layers:
            # Not peft's enable_adapters(): that also toggles requires_grad, under the feet of DDP.
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """The adapted model at the base model's cost: W + scale * BA instead of W, for use without gradient.

    The original tensors are put back afterwards, never computed by subtraction, so W keeps every bit.
    Where weights are split over processes (FSDP), none has W, and adapters run beside it as in training.
    """
    layers = lora_layers(module)
    originals: list[tuple[nn.Parameter, Tensor]] = []
    if any(isinstance(layer.get_base_layer().weight, DTensor) for layer in layers):
        yield
        return
    try:
        for layer in layers:
            weight = layer.get_base_layer().weight
            originals.append((weight, weight.data))
            weight.data = merged_weight(layer)
        with adapters_off(module):
            yield
    finally:
        for weight, original in originals:
            weight.data = original


def merged_bytes(module: nn.Module) -> int:
    """Memory that merged() takes: the merged weights beside the original ones."""
    return sum(layer.get_base_layer().weight.nbytes for layer in lora_layers(module))


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """Return W + scale * BA of a LoRA layer, in W's precision and memory format."""
    weight: Tensor = layer.get_base_layer().weight.data
    # Outside autocast, which would round BA to half precision.
    with torch.autocast(weight.device.type, enabled=False):
        total = weight.float()
        for adapter in layer.active_adapters:
            total = total + layer.get_delta_weight(adapter).float()
    return torch.empty_like(weight).copy_(total)
